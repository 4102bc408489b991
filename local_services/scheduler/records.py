"""What a task hub stores: orchestrations, activities, entities, and the messages to them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
from google.protobuf.timestamp_pb2 import Timestamp

PENDING, RUNNING, SUSPENDED = (
    pb.ORCHESTRATION_STATUS_PENDING,
    pb.ORCHESTRATION_STATUS_RUNNING,
    pb.ORCHESTRATION_STATUS_SUSPENDED,
)
COMPLETED, FAILED, TERMINATED = (
    pb.ORCHESTRATION_STATUS_COMPLETED,
    pb.ORCHESTRATION_STATUS_FAILED,
    pb.ORCHESTRATION_STATUS_TERMINATED,
)
CONTINUED_AS_NEW = pb.ORCHESTRATION_STATUS_CONTINUED_AS_NEW
FINISHED = frozenset({COMPLETED, FAILED, TERMINATED, pb.ORCHESTRATION_STATUS_CANCELED})


_FIRST_TIME, _LAST_TIME = -62_135_596_800_000_000, 253_402_300_799_999_999


class Refused(Exception):
    """A call that cannot be done, with the gRPC status and the message for its caller."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def micros(time: Timestamp) -> int:
    """A protobuf time as microseconds since 1970, limited to the years 1 to 9999."""
    return max(_FIRST_TIME, min(_LAST_TIME, time.seconds * 1_000_000 + time.nanos // 1000))


def timestamp(time: int) -> Timestamp:
    """Microseconds since 1970 as a protobuf time."""
    return Timestamp(seconds=time // 1_000_000, nanos=time % 1_000_000 * 1000)


@dataclass(slots=True, eq=False)
class Message:
    """An event to an orchestration or an entity, which has not handled it yet.

    Attributes:
        id: numbers messages in their order of arrival.
        target: the orchestration's instance id, or the entity's id, which begins with '@'.
        trace: the trace of the sender, for an entity's operation.
        due: when it is delivered, in microseconds since 1970; None when it has arrived.
    """

    id: int
    target: str
    event: pb.HistoryEvent
    trace: pb.TraceContext | None = None
    due: int | None = None


Kind = Literal["orchestration", "activity", "entity"]
Group = tuple[Kind, str, str]
"""What decides which workers may get a piece of work: its kind, name and version."""


@dataclass(slots=True, eq=False)
class Attempts:
    """What is known about the attempts at a record's current work. Not stored: after a restart it is empty.

    Attributes:
        token: the delivery's token, while a worker has the work.
        queued: whether the work waits for a worker.
        paused: until when it waits after an abandoned attempt, in microseconds since 1970; 0 if it does not.
        avoid: the worker that abandoned it last, which gets it again only if there is no other.
        abandoned, counted: how often it was abandoned, and how often the work itself may have been the reason.
        first: when it was abandoned the first time that counts.
        deaths: how often in a row its worker's stream ended.
    """

    token: str = ""
    queued: bool = False
    paused: int = 0
    avoid: int = 0
    abandoned: int = 0
    counted: int = 0
    first: int = 0
    deaths: int = 0


@dataclass(slots=True, eq=False)
class Orchestration:
    """One execution of an orchestration; a restart or continue-as-new begins another with the same instance id.

    Attributes:
        key: the execution's number; its history and its activities are stored with it.
        created, updated, completed, start_at: microseconds since 1970.
        parent, parent_key, parent_task: the execution that called this one, and the number of that call's task.
        caller_trace: the trace of the client or orchestration that started it.
        own_trace: sent to the worker with the next step, so that it continues its trace.
        history: None until it is needed.
        chunks: how many parts of the history are stored.
        inbox: events that have arrived, and that no finished step has seen.
        timers: its messages that are not due yet: timers, and its delayed start.
    """

    key: int
    id: str
    name: str
    version: str | None
    status: int
    created: int
    updated: int
    completed: int | None = None
    start_at: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    input: str | None = None
    output: str | None = None
    custom_status: str | None = None
    failure: pb.TaskFailureDetails | None = None
    caller_trace: pb.TraceContext | None = None
    own_trace: pb.OrchestrationTraceContext | None = None
    parent: str | None = None
    parent_key: int | None = None
    parent_task: int | None = None
    history: list[pb.HistoryEvent] | None = None
    chunks: int = 0
    inbox: list[Message] = field(default_factory=list)
    timers: dict[int, Message] = field(default_factory=dict)
    attempts: Attempts = field(default_factory=Attempts)

    @property
    def group(self) -> Group:
        """Which workers may get its steps."""
        return ("orchestration", self.name, self.version or "")

    @property
    def execution(self) -> str:
        """The execution's id in the protocol's messages."""
        return f"{self.key:x}"


@dataclass(slots=True, eq=False)
class Activity:
    """An unfinished call of an activity. `key` is that of the orchestration that made it."""

    id: int
    key: int
    request: pb.ActivityRequest
    attempts: Attempts = field(default_factory=Attempts)

    @property
    def group(self) -> Group:
        """Which workers may get it."""
        return ("activity", self.request.name, self.request.version.value)


@dataclass(slots=True, eq=False)
class Entity:
    """An entity. `modified` increases with every change of its state, even if the clock goes back.

    Attributes:
        lock, owner: the critical section that has locked it, and its orchestration; "" if none.
        inbox: operations and requests for its lock, in their order of arrival.
    """

    id: str
    modified: int
    state: str | None = None
    lock: str = ""
    owner: str = ""
    inbox: list[Message] = field(default_factory=list)
    attempts: Attempts = field(default_factory=Attempts)

    @property
    def group(self) -> Group:
        """Which workers may get its operations."""
        return ("entity", self.id[1:].partition("@")[0], "")


Record = Orchestration | Activity | Entity


class Changes:
    """What one call changes: the records to write, and those to remove."""

    def __init__(self) -> None:
        self.orchestrations: dict[int, Orchestration] = {}
        self.history: list[tuple[int, int, list[pb.HistoryEvent]]] = []  # key, number of the chunk, events
        self.activities: dict[int, Activity] = {}
        self.entities: dict[str, Entity] = {}
        self.messages: dict[int, Message] = {}
        self.answers: list[tuple[str, bytes, int]] = []  # id of the request, answer, time
        self.removed_executions: set[int] = set()  # with their histories
        self.removed_activities: set[int] = set()
        self.removed_entities: set[str] = set()
        self.removed_messages: set[int] = set()

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def remove_execution(self, key: int) -> None:
        """Remove an execution and its history."""
        self.orchestrations.pop(key, None)
        self.history = [chunk for chunk in self.history if chunk[0] != key]
        self.removed_executions.add(key)

    def remove_entity(self, entity_id: str) -> None:
        """Remove an entity."""
        self.entities.pop(entity_id, None)
        self.removed_entities.add(entity_id)

    def remove_messages(self, messages: Iterable[Message]) -> None:
        """Remove messages; one that was added in these same changes is not written at all."""
        for message in messages:
            if self.messages.pop(message.id, None) is None:
                self.removed_messages.add(message.id)

    def replace_message(self, message: Message) -> None:
        """Write a message again, because its event has changed."""
        if message.id not in self.messages:
            self.removed_messages.add(message.id)
            self.messages[message.id] = message

    def remove_activity(self, activity: Activity) -> None:
        """Remove an activity."""
        if self.activities.pop(activity.id, None) is None:
            self.removed_activities.add(activity.id)


class Records(Protocol):
    """What a hub reads from the store."""

    def unfinished(self) -> Iterator[Orchestration]:
        """All orchestrations that are not finished, without their histories."""
        ...

    def activities(self) -> Iterator[Activity]:
        """All activities."""
        ...

    def messages(self) -> Iterator[Message]:
        """All messages, in their order."""
        ...

    def locked_entities(self) -> Iterator[Entity]:
        """All entities that are locked, without their inboxes."""
        ...

    def orchestration(self, instance_id: str) -> Orchestration | None:
        """One orchestration, finished or not, without its history."""
        ...

    def entity(self, entity_id: str) -> Entity | None:
        """One entity, without its inbox."""
        ...

    def history(self, key: int) -> list[pb.HistoryEvent]:
        """The history of an execution."""
        ...

    def children(self, key: int) -> list[str]:
        """The instance ids of the orchestrations that an execution has called."""
        ...

    def finished(self, purge: pb.PurgeInstanceFilter, limit: int) -> list[str]:
        """The instance ids of finished orchestrations that match the filter, at most `limit`."""
        ...

    def answer(self, request_id: str) -> bytes | None:
        """The stored answer to a request, if there is one."""
        ...


def in_order(orchestration: Orchestration) -> list[Message]:
    """What has arrived, with the start first: the SDK fails on an event before it, which a delayed start can have."""
    return sorted(orchestration.inbox, key=lambda message: not message.event.HasField("executionStarted"))


def optional(message: Any, field: str) -> Any:
    """The field, or None if it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def text(message: Any, field: str) -> str | None:
    """The text of a field, or None if it is not set."""
    return getattr(message, field).value if message.HasField(field) else None


def copy(source: Any, target: Any, *fields: str) -> None:
    """Copy the fields that are set."""
    for name in fields:
        if (value := optional(source, name)) is not None:
            getattr(target, name).CopyFrom(value)
