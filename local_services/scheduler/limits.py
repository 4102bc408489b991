"""What is too large or malformed: DTS's limits, and the messages about them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc

from local_services.scheduler.records import CONTINUED_AS_NEW, FINISHED, Refused

PAYLOAD_LIMIT = 1024 * 1024
"""Bytes: DTS's service limit for one input, output, event, custom status or entity state."""

MESSAGE_LIMIT = 4 * 1024 * 1024
"""Bytes: the largest message that a gRPC client with default options receives, such as the SDK's workers."""

EVENTS_LIMIT = 3 * 1024 * 1024
"""Bytes: a history that has more takes no further large event. The rest of MESSAGE_LIMIT is for its own steps."""

LARGE_EVENT = 16 * 1024
"""Bytes: the data of an external event for which the history's room is checked."""

RECEIVE_LIMIT = 64 * 1024 * 1024
"""Bytes: much more than a worker may send, so that a larger message is answered with the reason."""

NAME_LIMIT = 1024
"""Characters of an id, a name or a tag; DTS documents none."""

FAILURE_LIMIT = 32 * 1024
"""Characters of a failure's message, and of its stack trace; all causes of a failure together have the same limit."""

TAGS_LIMIT = 100
"""Number of an orchestration's tags."""


def check_text(what: str, text: str) -> None:
    """Raise Refused if an id or a name is empty or too long."""
    if problem := _text_problem(what, text):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, problem)


def check_instance_id(text: str) -> None:
    """Raise Refused if this cannot be an orchestration's id."""
    check_text("instance id", text)
    if text.startswith("@"):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "An instance id cannot begin with '@': entity ids do.")


def check_entity_id(text: str) -> None:
    """Raise Refused if this cannot be an entity's id."""
    if problem := _entity_id_problem(text):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, problem)


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise Refused if there are too many tags, or one is too long."""
    if problem := _tags_problem(tags):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, problem)


def check_version(version: str) -> None:
    """Raise Refused if a version is too long."""
    if version:
        check_text("version", version)


def check_payload(what: str, text: str) -> None:
    """Raise Refused if a payload is larger than DTS accepts."""
    if problem := payload_problem([(what, text)]):
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)


def payload_problem(payloads: Iterable[tuple[str, str]]) -> str | None:
    """The message about the first payload over DTS's limit, if there is one. Each is a description and a text."""
    for what, text in payloads:
        if len(text) > PAYLOAD_LIMIT // 4 and (size := len(text.encode())) > PAYLOAD_LIMIT:
            return f"The {what} has {size:,} bytes; the scheduler stores {PAYLOAD_LIMIT:,} (1 MB) at most."
    return None


def too_large(problem: str) -> pb.TaskFailureDetails:
    """The failure of something that is too large to be stored or sent."""
    return failure("PayloadTooLarge", problem)


def failure(kind: str, message: str) -> pb.TaskFailureDetails:
    """A failure that the scheduler itself reports; a retry would not help."""
    return pb.TaskFailureDetails(errorType=kind, errorMessage=message, isNonRetriable=True)


def shorten_failure(holder: Any) -> None:
    """Shorten the holder's failureDetails if they are too long for a client to receive."""
    details = holder.failureDetails
    if details.ByteSize() <= FAILURE_LIMIT:
        return
    details.errorType, details.errorMessage = details.errorType[:NAME_LIMIT], _shortened(details.errorMessage)
    if details.HasField("stackTrace"):
        details.stackTrace.value = _shortened(details.stackTrace.value)
    for field in ("innerFailure", "properties"):
        if details.ByteSize() > 8 * FAILURE_LIMIT:
            details.ClearField(field)


def _shortened(text: str) -> str:
    return text if len(text) <= FAILURE_LIMIT else f"{text[:FAILURE_LIMIT]} … ({len(text):,} characters)"


def step_failure(response: pb.OrchestratorResponse) -> pb.TaskFailureDetails | None:
    """Why an orchestrator's step cannot be stored, if it cannot."""
    if problem := payload_problem(_payloads(response)):
        return too_large(problem)
    for action in response.actions:
        if problem := _action_problem(action):
            return failure("InvalidAction", problem)
    return None


def _payloads(response: pb.OrchestratorResponse) -> Iterator[tuple[str, str]]:
    """Everything that an orchestrator's step wants to store: a description and a text."""
    yield "custom status", response.customStatus.value
    for action in response.actions:
        # A field that is not set is the empty string.
        match action.WhichOneof("orchestratorActionType"):
            case "completeOrchestration":
                yield "output", action.completeOrchestration.result.value
            case "scheduleTask":
                yield f"input of activity '{action.scheduleTask.name}'", action.scheduleTask.input.value
            case "createSubOrchestration":
                child = action.createSubOrchestration
                yield f"input of sub-orchestration '{child.name}'", child.input.value
            case "sendEvent":
                yield f"data of event '{action.sendEvent.name}'", action.sendEvent.data.value
            case "sendEntityMessage":
                message = action.sendEntityMessage
                for operation in (message.entityOperationCalled, message.entityOperationSignaled):
                    yield f"input of operation '{operation.operation}'", operation.input.value


def _action_problem(action: pb.OrchestratorAction) -> str | None:
    match action.WhichOneof("orchestratorActionType"):
        case "completeOrchestration":
            status = action.completeOrchestration.orchestrationStatus
            if status not in FINISHED and status != CONTINUED_AS_NEW:
                return f"An orchestration cannot end with status {status}."
        case "scheduleTask":
            return _called_problem("activity", action.scheduleTask)
        case "createSubOrchestration":
            return _called_problem("sub-orchestration", action.createSubOrchestration)
        case "sendEvent":
            return _text_problem("event's name", action.sendEvent.name)
        case "sendEntityMessage":
            message = action.sendEntityMessage
            match message.WhichOneof("EntityMessageType"):
                case "entityOperationCalled":
                    return _entity_id_problem(message.entityOperationCalled.targetInstanceId.value)
                case "entityOperationSignaled":
                    return _entity_id_problem(message.entityOperationSignaled.targetInstanceId.value)
                case "entityLockRequested":
                    lock_set = message.entityLockRequested.lockSet
                    problems = [problem for entity in lock_set if (problem := _entity_id_problem(entity))]
                    return problems[0] if problems else None if lock_set else "There is no entity to lock."
                case "entityUnlockSent":
                    return None
                case _:
                    return "It sends an unknown message to an entity."
        case None:
            return "It contains an unknown action."
        case _:
            return None
    return None


def _called_problem(what: str, called: pb.ScheduleTaskAction | pb.CreateSubOrchestrationAction) -> str | None:
    version = called.version.value
    return (
        _text_problem(f"{what}'s name", called.name)
        or (_text_problem("version", version) if version else None)
        or _tags_problem(called.tags)
    )


def _tags_problem(tags: Mapping[str, str]) -> str | None:
    if len(tags) > TAGS_LIMIT:
        return f"There are {len(tags):,} tags; {TAGS_LIMIT} are allowed."
    for name, value in tags.items():
        if problem := _text_problem("tag's name", name) or (value and _text_problem("tag's value", value)):
            return problem
    return None


def _text_problem(what: str, text: str) -> str | None:
    if not text:
        return f"The {what} is empty."
    if len(text) > NAME_LIMIT:
        return f"The {what} has {len(text):,} characters; {NAME_LIMIT:,} are allowed."
    return None


def _entity_id_problem(text: str) -> str | None:
    name, _, key = text[1:].partition("@")
    if not text.startswith("@") or not name or not key:
        return f"An entity id has the form @name@key, not '{text[:80]}'."
    return _text_problem("entity's id", text)
