"""A call of a durable tool waits for a person's approval, for hours or days: its orchestration does, and no agent.

An approval counts for this tool with these arguments. When it is clear what became of the call, the orchestration asks
the agent to tell the user, in one more turn of the conversation.
"""

import json
from collections.abc import Callable, Generator
from datetime import timedelta, timezone
from hashlib import sha256
from typing import Annotated, Any, TypeAlias, TypeVar

from hosting.agent_runtime import RUN, notice
from hosting.terminal import command

from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus, TaskHubGrpcClient
from durabletask.entities import EntityInstanceId
from durabletask.task import OrchestrationContext, Task, TaskFailedError, when_any
from pydantic import BaseModel, ConfigDict, StrictBool, StringConstraints, ValidationError

EVENT = "HumanApproval"  # the external event that carries a decision
WAITING = "Requesting human feedback"  # how the custom status begins while a call waits for a decision
DECIDED = "-decided"  # the end of the correlation id of the turn in which the agent tells what became of a call

Result = TypeVar("Result")
Step: TypeAlias = Generator[Task[Any], Any, Result]
Text = Annotated[str, StringConstraints(max_length=20_000)]


class ToolCall(BaseModel):
    """The input of a call's orchestration.

    Attributes:
        conversation: the id of the agent's entity that holds it.
        approval_seconds: how long the call waits for a person's approval; None: it needs none.
    """

    tool: str
    arguments: dict[str, Any]
    conversation: str
    approval_seconds: float | None = None

    @property
    def fingerprint(self) -> str:
        """What an approval is for: the tool and its arguments."""
        return sha256(json.dumps([self.tool, self.arguments], sort_keys=True).encode()).hexdigest()


class Decision(BaseModel):
    """The data of the event. `decision_id` lets its sender see whether it counted."""

    model_config = ConfigDict(extra="forbid")

    approved: StrictBool
    call: str  # its fingerprint
    feedback: Text | None = None  # why it is rejected
    decision_id: Text | None = None


def act_if_approved(context: OrchestrationContext, call: ToolCall, act: Callable[[], Task[Any]]) -> Step[str]:
    """Wait for a decision, act if it is an approval, and have the agent tell the user."""
    decision = yield from decision_on(context, call)
    try:
        if decision is None:
            outcome = "was not done: nobody approved it in time."
        elif not decision.approved:
            outcome = f"was rejected, and not done. {decision.feedback or ''}".strip()
        else:
            outcome = f"was approved, and done: {(yield act())}"
    except TaskFailedError as error:
        outcome = f"was approved, and failed: {error.details.message}"
    told = (
        f"Not written by the user. The call of {call.tool} with {json.dumps(call.arguments)} {outcome} Tell the user."
    )
    turn, now = f"{context.instance_id}{DECIDED}", context.current_utc_datetime.replace(tzinfo=timezone.utc)
    message = notice(told, turn, context.instance_id, now)
    context.signal_entity(EntityInstanceId.parse(call.conversation), RUN, message)
    return outcome


def decision_on(context: OrchestrationContext, call: ToolCall) -> Step[Decision | None]:
    """The first decision on exactly this call; None if none comes in time."""
    assert call.approval_seconds
    time = timedelta(seconds=call.approval_seconds)
    shown: dict[str, Any] = {
        "call": call.fingerprint,
        "deadline": (context.current_utc_datetime + time).replace(tzinfo=timezone.utc).isoformat(),
        "draft": {"title": call.tool, "content": json.dumps(call.arguments, indent=2, ensure_ascii=False)},
    }
    timer = context.create_timer(time)
    while True:
        context.set_custom_status(f"{WAITING} on {call.tool}\n{json.dumps(shown)}")
        event = context.wait_for_external_event(EVENT)
        if (yield when_any([event, timer])) is timer:
            context.set_custom_status(f"Timed out\n{json.dumps(shown)}")
            return None
        try:
            decision = Decision.model_validate(event.get_result())
        except ValidationError:
            shown["last_decision"] = {"ignored": "It is not a decision."}
            continue
        if decision.call == call.fingerprint:
            said = "Approved" if decision.approved else "Rejected"
            context.set_custom_status(f"{said}\n{json.dumps({**shown, 'counted': [decision.decision_id]})}")
            return decision
        shown["last_decision"] = {"decision_id": decision.decision_id, "ignored": "It is for another call."}


def waiting_calls(client: TaskHubGrpcClient) -> dict[str, ToolCall]:
    """What waits for a decision, by instance id."""
    running = OrchestrationQuery(runtime_status=[OrchestrationStatus.RUNNING], fetch_inputs_and_outputs=True)
    return {one.instance_id: call_of(one) for one in client.get_all_orchestration_states(running) if waits(one)}


def untold_calls(client: TaskHubGrpcClient, conversation: EntityInstanceId) -> dict[str, str]:
    """Calls that need approval and of whose outcome the agent has not told yet; what a person should know of each."""
    entity = client.get_entity(conversation, include_state=True)
    told = (entity.get_state() if entity else None) or ""
    mine = OrchestrationQuery(instance_id_prefix=prefix_of(str(conversation)), fetch_inputs_and_outputs=True)
    calls = {one.instance_id: one for one in client.get_all_orchestration_states(mine) if one.failure_details is None}
    return {
        key: f"A call waits for approval: {command('approve.py')} approve {key}"
        if waits(one)
        else "A call was decided on."
        for key, one in calls.items()
        if call_of(one).approval_seconds is not None and key + DECIDED not in str(told)
    }


def prefix_of(conversation: str) -> str:
    """How the ids of a conversation's calls begin."""
    return sha256(conversation.encode()).hexdigest()[:12]


def waits(state: OrchestrationState | None) -> bool:
    """Whether this is a call that waits for a decision."""
    status = str(state.get_custom_status() or "") if state else ""
    return status.startswith(WAITING) and '"call": ' in status


def call_of(state: OrchestrationState) -> ToolCall:
    """The call, from its orchestration's input."""
    return ToolCall.model_validate_json(state.serialized_input or "")
