"""The reviewer's side: what waits for a decision, and the decision. Each command is its own process."""

import argparse

from hosting.instance import start_or_resume
from hosting.program import run
from hosting.scheduler import scheduler_client
from hosting.terminal import command, printable, seconds

from durabletask.client import OrchestrationState, TaskHubGrpcClient
from models import FEEDBACK_LIMIT, Decision
from reviews import (
    CONFIRM_SECONDS,
    ORCHESTRATION,
    NotCounted,
    decide,
    ending,
    print_draft,
    time_left,
    waiting_review,
    waiting_reviews,
)


def main() -> None:
    """Run the command."""
    arguments = parse_arguments()
    with scheduler_client() as client:
        if arguments.command == "list":
            list_drafts(client)
        elif arguments.command == "show":
            show_draft(client, arguments.id)
        else:
            decide_on_draft(client, arguments)


def list_drafts(client: TaskHubGrpcClient) -> None:
    """Print what waits for a decision."""
    waiting = waiting_reviews(client)
    for instance, review in waiting:
        assert review.draft
        print(f"{instance}  {review.which}  {printable(review.draft.title)}\n  {time_left(review)}")
    print(f"To see a draft: {command('review.py')} show ID" if waiting else "Nothing waits for a decision.")


def show_draft(client: TaskHubGrpcClient, instance: str) -> None:
    """Print the draft that waits, and the commands that decide on it; or how the orchestration ended."""
    state = find(client, instance)
    review = waiting_review(state)
    if not review:
        print(f"No draft waits for a decision. {printable(ending(state))}")
        return
    print_draft(instance, review)
    print(f"{command('review.py')} approve {instance} --draft {review.attempt}")
    print(f'{command("review.py")} reject {instance} --draft {review.attempt} --feedback "…"')


def decide_on_draft(client: TaskHubGrpcClient, arguments: argparse.Namespace) -> None:
    """Decide on the draft that waits, or on the one that the command line names. Raises NotCounted."""
    state = find(client, arguments.id)
    review = waiting_review(state)
    if not review:
        raise NotCounted(f"No draft waits for a decision. {ending(state)}")
    approved, attempt = arguments.command == "approve", arguments.draft or review.attempt
    decision = Decision(approved=approved, feedback=arguments.feedback, attempt=attempt, by=arguments.by)
    decide(client, arguments.id, decision, arguments.timeout)
    print(f"{'Approved' if approved else 'Rejected'}: draft {attempt} of {review.of}")


def find(client: TaskHubGrpcClient, instance: str) -> OrchestrationState:
    """The orchestration's state. Raises UsageError if there is none with this id."""
    start_or_resume(client, ORCHESTRATION, instance)
    state = client.get_orchestration_state(instance)
    assert state
    return state


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what waits for a decision, and until when; the most urgent first")
    commands.add_parser("show", help="the draft that waits").add_argument("id", metavar="ID")
    for name in ("approve", "reject"):
        one = commands.add_parser(name, help=f"{name} the draft that waits")
        one.add_argument("id", metavar="ID")
        one.add_argument("--draft", type=number, metavar="N", help="the draft you saw (default: the one that waits)")
        one.add_argument("--by", type=lambda text: text[:100], help="who decides (default: your user name)")
        one.add_argument("--timeout", type=seconds, default=CONFIRM_SECONDS, help="until a worker has read it (10 s)")
        if name == "reject":
            one.add_argument("--feedback", required=True, type=feedback, help="what the next draft should do better")
        else:
            one.set_defaults(feedback=None)
    return parser.parse_args()


def number(text: str) -> int:
    """The number of a draft, as the `type` of an argument."""
    if not text.isdecimal() or not 1 <= int(text[:4]) <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not the number of a draft")
    return int(text)


def feedback(text: str) -> str:
    """Words for the writer, as the `type` of an argument."""
    if not 0 < len(text.strip()) <= FEEDBACK_LIMIT:
        raise argparse.ArgumentTypeError(f"it is for the writer: 1 to {FEEDBACK_LIMIT:,} characters")
    return text


if __name__ == "__main__":
    run(main)
