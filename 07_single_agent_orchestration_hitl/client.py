"""Has an article written, shows each draft, and passes on what you say to it, until it is published."""

import argparse
import sys
from typing import Any

from durabletask.client import OrchestrationState, TaskHubGrpcClient
from models import Review
from review import ORCHESTRATION, decide, headline, print_draft, waiting_review
from steps import add_waiting_arguments, announce, result_of, start_or_resume
from support import AgentError, UsageError, run, scheduler_client

TOPIC = "urban gardening"
FEEDBACK = "Make it shorter, and add an example."


def main() -> None:
    """Start the orchestration, or find one that was started earlier, and talk with its reviewer until it ends."""
    arguments = parse_arguments()
    at_terminal = sys.stdin.isatty()
    with scheduler_client() as client:
        request = None if arguments.instance else request_of(arguments, at_terminal)
        instance = start_or_resume(client, ORCHESTRATION, input=request, instance=arguments.instance)
        if arguments.no_wait:
            announce(instance)
            print(f"To review it: python review.py show {instance}", file=sys.stderr)
            return
        print(f"Orchestration: {instance}", flush=True)
        answers = typed if at_terminal else left_to_others if arguments.instance else demonstrated
        state = result_of(client, instance, arguments.timeout, on_change=Dialogue(client, answers))
    published = state.get_output()
    print(f"\n{headline(state)}\n\n# {published['title']}\n\n{published['content']}")


class Dialogue:
    """Shows each draft once, as it comes, and sends what the reviewer answers."""

    def __init__(self, client: TaskHubGrpcClient, answers: Any) -> None:
        self._client = client
        self._answers = answers
        self._shown = 0

    def __call__(self, state: OrchestrationState) -> None:
        review = waiting_review(state)
        if not review or review.attempt <= self._shown:
            return
        self._shown = review.attempt
        print_draft(state.instance_id, review)
        feedback = self._answers(review)
        if feedback is None:
            return
        try:
            decide(self._client, state.instance_id, review.attempt, approved=not feedback, feedback=feedback)
            print("Rejected; the next draft is being written." if feedback else "Approved.", flush=True)
        except AgentError as reason:
            print(reason, flush=True)  # somebody else was quicker, or it took too long: the work goes on as it does


# Three kinds of reviewer: each is given a review, and answers with feedback, with "" to approve, or with None.


def typed(review: Review) -> str | None:
    """What the person at the terminal says. Ctrl-D leaves the draft undecided, and the client."""
    try:
        while True:
            answer = input("Publish it? 'yes', or say what to change: ").strip()
            if answer.lower() in ("y", "yes"):
                return ""
            if answer.lower() not in ("", "n", "no"):
                return answer
    except EOFError:
        raise KeyboardInterrupt from None


def demonstrated(review: Review) -> str | None:
    """Without a terminal there is nobody to ask: one round of feedback and an approval, to show how it goes."""
    feedback = FEEDBACK if review.attempt == 1 < review.of else ""
    print(f"Reviewer (demonstration): {feedback or 'yes'}", flush=True)
    return feedback


def left_to_others(review: Review) -> str | None:
    """Whoever comes back without a terminal waits for the decision of others."""
    print("It waits for a decision: python review.py approve … or reject …", flush=True)
    return None


def request_of(arguments: argparse.Namespace, at_terminal: bool) -> dict[str, Any]:
    """The orchestration's input."""
    topic = arguments.topic
    if topic is None and at_terminal and not arguments.no_wait:
        topic = input(f"What shall the article be about? [{TOPIC}] ").strip()
    return {
        "topic": topic or TOPIC,
        "max_review_attempts": arguments.attempts,
        "approval_timeout_seconds": arguments.review_timeout,
    }


def parse_arguments() -> argparse.Namespace:
    """The command line. Raises UsageError where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topic", nargs="?", help=f"what the article is about (default: {TOPIC})")
    parser.add_argument("--attempts", type=int, default=3, metavar="N", help="how many drafts at most (3)")
    parser.add_argument(
        "--review-timeout", type=float, default=300, metavar="SECONDS", help="for the decision on each draft (300)"
    )
    add_waiting_arguments(parser)
    arguments = parser.parse_args()
    if arguments.instance is not None and arguments.topic is not None:
        raise UsageError("--instance comes back to an orchestration that has its topic: give one or the other.")
    return arguments


if __name__ == "__main__":
    run(main)
