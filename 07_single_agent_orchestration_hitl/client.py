"""Has an article written, shows you each draft, and passes on what you say to it, until it is published."""

import argparse
import sys

from hosting.instance import add_waiting_arguments, announce, come_back, start_or_resume
from hosting.program import AgentError, run
from hosting.scheduler import scheduler_client
from hosting.status import headline
from hosting.terminal import command, printable, seconds, typed
from hosting.waiting import watch

from models import FEEDBACK_LIMIT, Decision, meaning
from review_status import Review
from reviews import ORCHESTRATION, decide, print_draft, waiting_review

TOPIC = "urban gardening"


def main() -> None:
    """Start the orchestration, or find one that was started earlier, and have each draft decided on until it ends."""
    arguments = parse_arguments()
    with scheduler_client() as client:
        request = {"topic": arguments.topic or TOPIC, "max_review_attempts": arguments.attempts}
        request["approval_timeout_seconds"] = arguments.review_timeout
        instance = start_or_resume(client, ORCHESTRATION, arguments.instance, input=request)
        if arguments.no_wait:
            announce(instance)
            print(f"To review it: {command('review.py')} show {instance}", file=sys.stderr)
            return
        print(f"Orchestration: {instance}", flush=True)
        reviewer = at_terminal if sys.stdin.isatty() else left_to_others if arguments.instance else demonstrated
        reviewed = 0
        for state in watch(client, instance, arguments.timeout, every=0.25):
            if (review := waiting_review(state)) and review.attempt > reviewed:
                reviewed = review.attempt
                print_draft(instance, review)
                try:
                    if decision := reviewer(review):
                        decide(client, instance, decision)
                        print("Approved." if decision.approved else "Rejected.", flush=True)
                except AgentError as reason:  # another reviewer was quicker, or the time is over
                    print(printable(reason), flush=True)
                except KeyboardInterrupt:
                    print(f"{review.which.capitalize()} stays undecided. {come_back(instance)}", file=sys.stderr)
                    raise
            elif article := state.get_output():
                print(f"\n{printable(headline(state))}\n\n# {printable(article['title'])}\n")
                print(printable(article["content"]))


def at_terminal(review: Review) -> Decision:
    """What the person decides; anything unclear is asked again. Ctrl-C and Ctrl-D raise KeyboardInterrupt."""
    while True:
        said = answer("Publish it? [yes/no] ")
        if approved := meaning(said):
            return Decision(approved=True, attempt=review.attempt)
        if approved is False:
            said = answer("What should the next draft do better? ")
        elif said and not meaning(answer("Is that feedback for the next draft? [yes/no] ")):
            continue
        if said:
            return Decision(approved=False, attempt=review.attempt, feedback=said[:FEEDBACK_LIMIT])


def answer(question: str) -> str:
    """What the person types."""
    if (said := typed(question)) is None:
        raise KeyboardInterrupt
    return said


def demonstrated(review: Review) -> Decision:
    """Without a terminal there is nobody to ask: one round of feedback and an approval, to show how it works."""
    feedback = "Make it shorter, and add an example." if review.attempt == 1 < review.of else None
    print(f"Reviewer (demonstration): {feedback or 'yes'}", flush=True)
    return Decision(approved=not feedback, attempt=review.attempt, feedback=feedback)


def left_to_others(review: Review) -> None:
    """With --instance and without a terminal, the client waits for the decision of others."""
    print(f"It waits for a decision: {command('review.py')} approve … or reject …", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topic", nargs="?", help=f"what the article is about (default: {TOPIC})")
    parser.add_argument("--attempts", type=int, default=3, metavar="N", help="how many drafts at most (3)")
    parser.add_argument("--review-timeout", type=seconds, default=300, metavar="SECONDS", help="for a decision (300)")
    add_waiting_arguments(parser)
    arguments = parser.parse_args()
    if arguments.instance is not None and arguments.topic is not None:
        parser.error("--instance comes back to an orchestration that has its topic: give one or the other")
    return arguments


if __name__ == "__main__":
    run(main)
