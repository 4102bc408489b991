"""One task hub as a state machine: a call and the current time go in; changes, work and answers come out.

There is no clock here, no thread, no socket and no SQL: the caller stores the changes first, and then sends the answer
and the work.
"""

import heapq
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import durabletask.internal.orchestrator_service_pb2 as pb

from local_services.scheduler.entities import Entities
from local_services.scheduler.orchestrations import Orchestrations
from local_services.scheduler.records import Changes, Message, Record, Records, timestamp
from local_services.scheduler.stepping import Steps
from local_services.scheduler.work import Work

REMEMBER_ANSWERS = 3600 * 1_000_000
"""Microseconds for which a repeated request is recognised: much longer than any client repeats it."""


class Hub:
    """A task hub: its orchestrations, its entities, and the work for its workers.

    Args:
        records: what is stored of this hub.
        ids: numbers for new records, each larger than the one before and all stored ones.
        nonce: differs each time a hub is loaded, so that tokens from before a restart can be recognised.
    """

    CALLS: ClassVar[dict[str, Callable[[Any, Any], Any]]] = {
        "StartInstance": lambda hub, request: hub.orchestrations.start(request),
        "RaiseEvent": lambda hub, request: hub.orchestrations.raise_event(request),
        "TerminateInstance": lambda hub, request: hub.orchestrations.terminate(request),
        "SuspendInstance": lambda hub, request: hub.orchestrations.suspend(request),
        "ResumeInstance": lambda hub, request: hub.orchestrations.resume(request),
        "RestartInstance": lambda hub, request: hub.orchestrations.restart(request),
        "RewindInstance": lambda hub, request: hub.orchestrations.rewind(request),
        "PurgeInstances": lambda hub, request: hub.orchestrations.purge(request),
        "SignalEntity": lambda hub, request: hub.entities.signal(request),
        "CleanEntityStorage": lambda hub, request: hub.entities.clean(request),
        "CompleteOrchestratorTask": lambda hub, request: hub.work.complete_step(request),
        "CompleteActivityTask": lambda hub, request: hub.work.complete_activity(request),
        "CompleteEntityTask": lambda hub, request: hub.work.complete_batch(request),
        "AbandonTaskOrchestratorWorkItem": lambda hub, request: hub.work.abandon_step(request),
        "AbandonTaskActivityWorkItem": lambda hub, request: hub.work.abandon_activity(request),
        "AbandonTaskEntityWorkItem": lambda hub, request: hub.work.abandon_batch(request),
    }

    def __init__(self, records: Records, ids: Iterator[int], nonce: str) -> None:
        self.records = records
        self.now = 0
        self.changes = Changes()
        self.next_id = lambda: next(ids)
        self.work = Work(self, nonce)
        self.orchestrations = Orchestrations(self)
        self.steps = Steps(self)
        self.entities = Entities(self)
        self._schedule: list[tuple[int, int, Message | Record]] = []  # when, number, what: a heap
        self._scheduled: dict[int, Message] = {}  # messages that are not due yet; the heap also holds removed ones

    def load(self, now: int) -> None:
        """Read what is stored: all unfinished work is redelivered."""
        self.now = now
        for orchestration in self.records.unfinished():
            self.orchestrations.live[orchestration.id] = orchestration
        for entity in self.records.locked_entities():
            self.entities.keep(entity)
        for activity in self.records.activities():
            self.work.add_activity(activity, restored=True)
        for message in self.records.messages():
            if message.due is not None:
                self._plan(message)
            elif message.target.startswith("@"):
                self.entities.find_or_make(message.target).inbox.append(message)
            elif orchestration := self.orchestrations.live.get(message.target):
                orchestration.inbox.append(message)
        self.orchestrations.load()
        self.entities.load()

    def call(self, method: str, request: Any, now: int, request_id: str = "") -> Any:
        """Do what a gRPC call asks for; returns its answer. A repeated request gets the first answer again.

        Raises:
            Refused: it cannot be done. There may be changes to store all the same.
        """
        self.now = now
        if not request_id:
            return self.CALLS[method](self, request)
        request_id = f"{method} {request_id}"
        if (stored := self.records.answer(request_id)) is not None:
            return _ANSWERS[method].FromString(stored)
        answer = self.CALLS[method](self, request)
        self.changes.answers.append((request_id, answer.SerializeToString(), now))
        return answer

    def connect(self, worker: int, request: pb.GetWorkItemsRequest, now: int) -> None:
        """A worker's stream begins; `worker` is its number."""
        self.now = now
        self.work.connect(worker, request)

    def disconnect(self, worker: int, now: int) -> None:
        """A worker's stream has ended: its unfinished work is redelivered."""
        self.now = now
        self.work.disconnect(worker)

    def tick(self, now: int) -> None:
        """Deliver what is due."""
        self.now = now
        while self._schedule and self._schedule[0][0] <= now:
            _, number, due = heapq.heappop(self._schedule)
            if not isinstance(due, Message):
                self.work.unpause(due)
            elif self._scheduled.pop(number, None):
                self._arrive(due)

    def next_due(self) -> int | None:
        """When something is due next, in microseconds since 1970; None if nothing is."""
        return self._schedule[0][0] if self._schedule else None

    def hand_out(self) -> list[tuple[int, pb.WorkItem]]:
        """Assign waiting work to workers; returns what to send to which worker after the changes are stored."""
        return self.work.hand_out()

    def take_changes(self) -> Changes:
        """All changes since the last call."""
        changes, self.changes = self.changes, Changes()
        return changes

    # For the parts of the hub ----------------------------------------------------------------------------------

    def event(self, **kind: Any) -> pb.HistoryEvent:
        """An event with the current time that does not answer an action."""
        return pb.HistoryEvent(eventId=-1, timestamp=timestamp(self.now), **kind)

    def send(
        self, target: str, event: pb.HistoryEvent, due: int | None = None, trace: pb.TraceContext | None = None
    ) -> Message:
        """Send an event to an orchestration that is not finished, or to an entity."""
        message = Message(self.next_id(), target, event, trace, due if due is not None and due > self.now else None)
        self.changes.messages[message.id] = message
        if message.due is None:
            self._deliver(message)
        else:
            self._plan(message)
        return message

    def take_back(self, messages: list[Message]) -> None:
        """Remove messages, delivered or not."""
        self.changes.remove_messages(messages)
        for message in messages:
            self._scheduled.pop(message.id, None)

    def wake(self, record: Record, when: int) -> None:
        """Unpause a record's work at that time."""
        heapq.heappush(self._schedule, (when, self.next_id(), record))

    def _plan(self, message: Message) -> None:
        assert message.due is not None
        self._scheduled[message.id] = message
        heapq.heappush(self._schedule, (message.due, message.id, message))
        if orchestration := self.orchestrations.live.get(message.target):
            orchestration.timers[message.id] = message

    def _arrive(self, planned: Message) -> None:
        """Deliver a message that is due. It gets a new number, because it arrives after those that came meanwhile."""
        self.changes.remove_messages([planned])
        if orchestration := self.orchestrations.live.get(planned.target):
            orchestration.timers.pop(planned.id, None)
        planned.event.timestamp.CopyFrom(timestamp(self.now))
        self.send(planned.target, planned.event, None, planned.trace)

    def _deliver(self, message: Message) -> None:
        if message.target.startswith("@"):
            self.entities.arrive(message)
        elif orchestration := self.orchestrations.live.get(message.target):
            self.orchestrations.arrive(orchestration, message)
        else:  # it has finished meanwhile
            self.changes.remove_messages([message])


def request_id_of(method: str, request: Any, header: str) -> str:
    """The id by which a repeated request is recognised: the client's header, or the signal's id; '' if there is none.

    A worker's calls need none: their completion token counts once.
    """
    if method not in _ANSWERS:
        return ""
    if header:
        return header
    if method == "SignalEntity" and request.requestId:
        return f"{request.instanceId} {request.requestId}"
    return ""


_ANSWERS: dict[str, Any] = {
    "StartInstance": pb.CreateInstanceResponse,
    "RaiseEvent": pb.RaiseEventResponse,
    "TerminateInstance": pb.TerminateResponse,
    "SuspendInstance": pb.SuspendResponse,
    "ResumeInstance": pb.ResumeResponse,
    "RestartInstance": pb.RestartInstanceResponse,
    "RewindInstance": pb.RewindInstanceResponse,
    "SignalEntity": pb.SignalEntityResponse,
    "CleanEntityStorage": pb.CleanEntityStorageResponse,
}
