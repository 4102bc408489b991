"""What client.py and review.py share: the drafts that wait for a decision, and a decision that is sent."""

import time
from datetime import datetime, timedelta, timezone
from uuid import uuid4

from hosting.calls import waiting_at_most
from hosting.program import AgentError, setting
from hosting.status import headline, shown
from hosting.terminal import command, printable

from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus, TaskHubGrpcClient
from models import Decision
from pydantic import ValidationError
from review_status import EVENT, WAITING, Review

ORCHESTRATION = "content_generation_hitl_orchestration"
CONFIRM_SECONDS = 10.0  # how long to wait until a worker has read a decision


class NotCounted(AgentError):
    """The decision did not count; the message says why."""


def review_of(state: OrchestrationState) -> Review | None:
    """The review in an orchestration's custom status, if it has one."""
    try:
        return Review.model_validate_json(shown(state))
    except ValidationError:
        return None


def waiting_review(state: OrchestrationState) -> Review | None:
    """The review of an orchestration whose draft waits for a decision; None if it does not."""
    waits = state.runtime_status is OrchestrationStatus.RUNNING and headline(state).startswith(WAITING)
    return review_of(state) if waits and state.name == ORCHESTRATION else None


def waiting_reviews(client: TaskHubGrpcClient) -> list[tuple[str, Review]]:
    """The instance ids of all orchestrations that wait for a decision, and their reviews; the most urgent first."""
    running = OrchestrationQuery(runtime_status=[OrchestrationStatus.RUNNING], fetch_inputs_and_outputs=True)
    states = client.get_all_orchestration_states(running)
    found = [(state.instance_id, review) for state in states if (review := waiting_review(state))]
    return sorted(found, key=lambda one: str(one[1].deadline))


def decide(client: TaskHubGrpcClient, instance: str, decision: Decision, timeout: float = CONFIRM_SECONDS) -> None:
    """Send a decision on the draft that it names, and wait until it is certain that it counts.

    Raises:
        NotCounted: it does not: another one came first, or it came too late.
        AgentError: no worker has read it within so many seconds; it may still count.
    """
    by = decision.by or setting("USER") or setting("USERNAME")  # the latter on Windows
    decision = decision.model_copy(update={"decision_id": uuid4().hex, "by": by[:100] or None})
    deadline, pause = time.monotonic() + timeout, 0.002
    with waiting_at_most(timeout):
        client.raise_orchestration_event(instance, EVENT, data=decision.model_dump())
    # Raising an event reports nothing. Whether it counted is in the custom status, by its id.
    while (left := deadline - time.monotonic()) > 0:
        with waiting_at_most(left):
            state = client.get_orchestration_state(instance)
        if state and counted(state, decision):
            return
        time.sleep(pause)
        pause = min(pause * 1.2, 0.25)
    raise AgentError(
        f"The scheduler has the decision, but no worker has read it within {timeout:g} s: is one running "
        f"({command('worker.py')})? What became of it: {command('review.py')} show {instance}"
    )


def counted(state: OrchestrationState, decision: Decision) -> bool:
    """Whether the decision counted; False while that is not known. Raises NotCounted if it did not."""
    review = review_of(state)
    if review and decision.decision_id in review.counted:
        return True
    if review and decision.attempt and len(review.counted) >= decision.attempt:
        raise NotCounted(f"The decision does not count: another one on draft {decision.attempt} came first.")
    if review and review.last_decision and review.last_decision.decision_id == decision.decision_id:
        raise NotCounted(f"The decision does not count. {review.last_decision.ignored}")
    if state.runtime_status not in (OrchestrationStatus.RUNNING, OrchestrationStatus.SUSPENDED):
        raise NotCounted(f"The decision does not count: it came too late. {ending(state)}")
    return False


def ending(state: OrchestrationState) -> str:
    """How the orchestration ended, or what it does, in a line."""
    message = state.failure_details.message if state.failure_details else headline(state)
    return f"{state.runtime_status.name.capitalize()}: {message or 'it has not begun'}"


def print_draft(instance: str, review: Review) -> None:
    """The draft, for the person who decides."""
    assert review.draft
    print(f"\n{review.which.capitalize()} ({instance})\n{time_left(review)}")
    if (last := review.last_decision) and last.ignored:
        print(f"A decision was ignored. {printable(last.ignored)}")
    elif last and last.by:
        print(f"Draft {review.attempt - 1} was rejected by {printable(last.by)}.")
    print(f"\n  {printable(review.draft.title)}\n")
    print(
        "\n".join(f"  {line}".rstrip() for line in printable(review.draft.content).splitlines()), end="\n\n", flush=True
    )


def time_left(review: Review) -> str:
    """Until when a draft waits, in local time."""
    assert review.deadline
    left = review.deadline - datetime.now(timezone.utc)
    how_long = f"{str(left).partition('.')[0]} left" if left > timedelta(0) else "over, as a worker will notice"
    return f"waits until {review.deadline.astimezone():%Y-%m-%d %H:%M:%S} ({how_long})"
