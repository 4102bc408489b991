"""The reviewer's side: what waits for a decision, and the decision. Each command is a process of its own.

python review.py list
python review.py show ID
python review.py approve ID
python review.py reject ID --feedback "Make it shorter."
"""

import argparse
import time
from datetime import datetime, timezone
from uuid import uuid4

from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus, TaskHubGrpcClient
from models import EVENT, FEEDBACK_LIMIT, WAITING, Decision, Review
from steps import start_or_resume
from support import AgentError, UsageError, run, scheduler_client

ORCHESTRATION = "content_generation_hitl_orchestration"
CONFIRM_SECONDS = 10.0  # how long a decision is waited for to be taken up


class NotCounted(AgentError):
    """The decision did not count; the message says why."""


def waiting_review(state: OrchestrationState) -> Review | None:
    """The review of an orchestration whose draft waits for a decision; None if it does not."""
    if state.name == ORCHESTRATION and state.runtime_status is OrchestrationStatus.RUNNING:
        return Review.from_status(state.get_custom_status()) if headline(state).startswith(WAITING) else None
    return None


def waiting_reviews(client: TaskHubGrpcClient) -> list[tuple[str, Review]]:
    """The instance ids of all orchestrations that wait for a decision, and what they show; oldest first."""
    running = OrchestrationQuery(runtime_status=[OrchestrationStatus.RUNNING], fetch_inputs_and_outputs=True)
    states = client.get_all_orchestration_states(running)
    found = [(state.instance_id, review) for state in states if (review := waiting_review(state))]
    return sorted(found, key=lambda one: str(one[1].since))


def decide(
    client: TaskHubGrpcClient,
    instance_id: str,
    attempt: int,
    approved: bool,
    feedback: str = "",
    timeout: float = CONFIRM_SECONDS,
) -> None:
    """Send a decision on the draft with this number, and wait until it is certain that it counts.

    Raises:
        NotCounted: it does not: another one came first, or it came too late.
        AgentError: nobody has taken it up within so many seconds; it may still count.
    """
    decision = Decision(approved=approved, feedback=feedback, attempt=attempt, decision_id=uuid4().hex)
    client.raise_orchestration_event(instance_id, EVENT, data=decision.model_dump())
    # Raising an event reports nothing. Whether it counted is in the custom status, by its id.
    deadline, pause = time.monotonic() + timeout, 0.002
    while time.monotonic() < deadline:
        state = client.get_orchestration_state(instance_id)
        if state and settled(state, decision):
            return
        time.sleep(pause)
        pause = min(pause * 1.2, 0.25)
    raise AgentError(
        f"The decision is with the scheduler, but no worker has taken it up within {timeout:g} s: is one running "
        f"(python worker.py)? What became of it: python review.py show {instance_id}"
    )


def settled(state: OrchestrationState, decision: Decision) -> bool:
    """Whether the decision counted; False while that is not known. Raises NotCounted if it did not."""
    review = Review.from_status(state.get_custom_status())
    assert decision.attempt
    if review and decision.decision_id in review.counted:
        return True
    if review and len(review.counted) >= decision.attempt:
        raise NotCounted(f"The decision does not count: another one on draft {decision.attempt} came first.")
    if review and review.last_decision and review.last_decision.decision_id == decision.decision_id:
        raise NotCounted(f"The decision does not count. {review.last_decision.ignored}")
    if state.runtime_status not in (OrchestrationStatus.RUNNING, OrchestrationStatus.SUSPENDED):
        raise NotCounted(f"The decision does not count: it came too late. {ending(state)}")
    return False


def headline(state: OrchestrationState) -> str:
    """The first line of the custom status."""
    return str(state.get_custom_status() or "").partition("\n")[0]


def ending(state: OrchestrationState) -> str:
    """How the orchestration ended, or what it does, in a line."""
    message = state.failure_details.message if state.failure_details else headline(state)
    return f"{state.runtime_status.name.capitalize()}: {message or 'it has not begun'}"


def print_draft(instance_id: str, review: Review) -> None:
    """The draft, as a person reads it who has to decide."""
    assert review.draft
    print(f"\nDraft {review.attempt} of {review.of} ({instance_id})")
    print(f"{period(review)}\n")
    print(f"  {review.draft.title}\n")
    print("\n".join(f"  {line}".rstrip() for line in review.draft.content.splitlines()))
    if review.last_decision and review.last_decision.ignored:
        print(f"\n(A decision was ignored. {review.last_decision.ignored})")
    print(flush=True)


def period(review: Review) -> str:
    """Since when and until when a draft waits, in local time."""
    assert review.since
    assert review.deadline
    since, until = review.since.astimezone(), review.deadline.astimezone()
    seconds = (until - datetime.now(timezone.utc)).total_seconds()
    left = f"{duration(seconds)} left" if seconds > 0 else "over, as a worker will note"
    return f"waiting since {since:%Y-%m-%d %H:%M:%S}, until {until:%Y-%m-%d %H:%M:%S} ({left})"


def duration(seconds: float) -> str:
    """A length of time, in its two largest units."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 2:
        return f"{days:.0f} days"
    if hours >= 2:
        return f"{hours:.0f} hours"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def list_command(client: TaskHubGrpcClient) -> None:
    """Print what waits."""
    waiting = waiting_reviews(client)
    for instance_id, review in waiting:
        assert review.draft
        print(f"{instance_id}  draft {review.attempt} of {review.of}  {review.draft.title}")
        print(f"  {period(review)}")
    print("python review.py show ID" if waiting else "Nothing waits for a decision.")


def show_command(client: TaskHubGrpcClient, instance_id: str) -> None:
    """Print the draft that waits, and the commands that decide on it; or how the orchestration ended."""
    state = find(client, instance_id)
    review = waiting_review(state)
    if not review:
        print(f"No draft waits for a decision. {ending(state)}")
        return
    print_draft(instance_id, review)
    print(f"python review.py approve {instance_id} --draft {review.attempt}")
    print(f'python review.py reject {instance_id} --draft {review.attempt} --feedback "…"')


def decide_command(client: TaskHubGrpcClient, arguments: argparse.Namespace) -> None:
    """Decide on the draft that waits, or on the one that the command line names. Raises NotCounted."""
    state = find(client, arguments.id)
    review = waiting_review(state)
    if not review or not review.draft:
        raise NotCounted(f"No draft waits for a decision. {ending(state)}")
    approved = arguments.command == "approve"
    decide(client, arguments.id, arguments.draft or review.attempt, approved, arguments.feedback, arguments.timeout)
    print(f"{'Approved' if approved else 'Rejected'}: draft {review.attempt} of {review.of}, {review.draft.title}")


def find(client: TaskHubGrpcClient, instance_id: str) -> OrchestrationState:
    """The orchestration's state. Raises UsageError if there is none with this id."""
    start_or_resume(client, ORCHESTRATION, instance=instance_id)
    state = client.get_orchestration_state(instance_id)
    assert state
    return state


def parse_arguments() -> argparse.Namespace:
    """The command line. Raises UsageError where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what waits for a decision, since when, until when")
    commands.add_parser("show", help="the draft that waits").add_argument("id", metavar="ID")
    for name in ("approve", "reject"):
        command = commands.add_parser(name, help=f"{name} the draft that waits")
        command.add_argument("id", metavar="ID")
        command.add_argument("--draft", type=int, metavar="N", help="the one you have seen (default: the one waiting)")
        command.add_argument(
            "--timeout",
            type=float,
            default=CONFIRM_SECONDS,
            metavar="SECONDS",
            help=f"how long to wait for a worker to take it up ({CONFIRM_SECONDS:g})",
        )
        if name == "reject":
            command.add_argument("--feedback", required=True, help="what the next draft should do better")
        else:
            command.set_defaults(feedback="")
    arguments = parser.parse_args()
    if arguments.command == "reject" and not 0 < len(arguments.feedback.strip()) <= FEEDBACK_LIMIT:
        raise UsageError(f"--feedback is for the writer: 1 to {FEEDBACK_LIMIT:,} characters.")
    if getattr(arguments, "draft", None) is not None and arguments.draft < 1:
        raise UsageError("--draft is the number of a draft, from 1.")
    return arguments


def main() -> None:
    """Run the command."""
    arguments = parse_arguments()
    with scheduler_client() as client:
        if arguments.command == "list":
            list_command(client)
        elif arguments.command == "show":
            show_command(client, arguments.id)
        else:
            decide_command(client, arguments)


if __name__ == "__main__":
    run(main)
