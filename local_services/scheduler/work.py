"""Work for workers: which worker gets what, redelivery, and which completion counts."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc

from local_services.scheduler.limits import MESSAGE_LIMIT, failure, payload_problem, shorten_failure, too_large
from local_services.scheduler.records import (
    Activity,
    Attempts,
    Entity,
    Group,
    Kind,
    Message,
    Orchestration,
    Record,
    Refused,
)

if TYPE_CHECKING:
    from local_services.scheduler.hub import Hub

SECOND = 1_000_000  # microseconds
FIRST_PAUSE, LONGEST_PAUSE = SECOND // 10, 30 * SECOND
ABANDONS, ABANDONED_FOR = 10, 600 * SECOND
"""Work that was abandoned this many times, over at least this time, fails."""

GRACE = 3 * SECOND // 2
"""After a restart of the scheduler, workers have this time to return results that they finished meanwhile."""

DEATHS = 50
"""Work fails if this many workers in a row died while they had it."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A piece of work that a worker has. `messages` are those it received: an orchestrator's events, or operations."""

    token: str
    worker: Worker
    record: Record
    messages: list[Message]
    events: list[pb.HistoryEvent] = field(default_factory=list)  # a step's events, in the order in which it sees them


@dataclass(slots=True, eq=False)
class Worker:
    """A worker's stream: which work it accepts, and which it has."""

    number: int
    filters: dict[Kind, dict[str, frozenset[str]]] | None
    limits: dict[Kind, int]
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    counts: Counter[Kind] = field(default_factory=Counter)  # number of deliveries
    versions: set[str] = field(default_factory=set)  # of orchestrations: it has finished a step of each

    def takes(self, group: Group) -> bool:
        """Whether its filters accept such work, and its limit allows more."""
        kind, name, version = group
        if self.filters is not None:
            versions = self.filters[kind].get(name)
            if versions is None or (versions and version not in versions):
                return False
        limit = self.limits[kind]
        return not limit or self.counts[kind] < limit


class Work:
    """A hub's work: waiting for a worker, or with a worker."""

    def __init__(self, hub: Hub, nonce: str) -> None:
        self._hub = hub
        self._nonce = nonce
        self._tokens = 0
        self._activities: dict[int, dict[int, Activity]] = {}  # by the execution's key and the activity's id
        self._waiting: dict[Group, deque[Record]] = {}
        self._paused: dict[Record, None] = {}
        self._workers: dict[int, Worker] = {}
        self._deliveries: dict[str, Delivery] = {}

    # Workers come and go ---------------------------------------------------------------------------------------

    def connect(self, number: int, request: pb.GetWorkItemsRequest) -> None:
        """Add a worker. Abandoned work is redelivered immediately, because this worker may be able to do it."""
        filters = request.workItemFilters
        self._workers[number] = Worker(
            number,
            {
                "orchestration": _versions(filters.orchestrations),
                "activity": _versions(filters.activities),
                "entity": {entity.name.lower(): frozenset() for entity in filters.entities},
            }
            if request.HasField("workItemFilters")
            else None,
            {
                "orchestration": request.maxConcurrentOrchestrationWorkItems,
                "activity": request.maxConcurrentActivityWorkItems,
                "entity": request.maxConcurrentEntityWorkItems,
            },
        )
        for record in list(self._paused):
            self._unpause(record)

    def disconnect(self, number: int) -> None:
        """Redeliver a worker's unfinished work after its stream has ended."""
        worker = self._workers.pop(number, None)
        for delivery in list(worker.deliveries.values()) if worker else ():
            self._end(delivery)
            attempts = delivery.record.attempts
            attempts.deaths += 1
            if attempts.deaths >= DEATHS:
                reason = f"{DEATHS} workers in a row died or disconnected while they had it. Their logs say why."
                self._fail(delivery.record, failure("WorkersEnded", reason))
            else:
                self._offer_again(delivery.record)

    # Work is offered and sent ----------------------------------------------------------------------------------

    def offer(self, record: Record) -> None:
        """Queue a record's work, unless a worker has it, it is queued already, or paused."""
        attempts = record.attempts
        if not attempts.token and not attempts.queued and not attempts.paused:
            attempts.queued = True
            self._waiting.setdefault(record.group, deque()).append(record)

    def _offer_again(self, record: Record) -> None:
        """Queue work that a worker has not done. For an entity, a waiting lock request is granted first."""
        if isinstance(record, Entity):
            self._hub.entities.proceed(record)
        else:
            self.offer(record)

    def withdraw(self, record: Record) -> None:
        """Cancel work that nobody needs any more: its completion will not count."""
        if delivery := self._deliveries.get(record.attempts.token):
            self._end(delivery)
        if record.attempts.queued:
            self._waiting[record.group].remove(record)
        self._paused.pop(record, None)
        record.attempts = Attempts()

    def add_activity(self, activity: Activity, restored: bool = False) -> None:
        """Queue an activity; one from before a restart only after GRACE."""
        self._activities.setdefault(activity.key, {})[activity.id] = activity
        if restored:
            self.restore(activity)
        self.offer(activity)

    def remove_activities(self, key: int) -> None:
        """Remove an execution's activities."""
        for activity in self._activities.pop(key, {}).values():
            self.withdraw(activity)
            self._hub.changes.remove_activity(activity)

    def restore(self, record: Activity | Entity) -> None:
        """Pause work from before a restart: a worker may still return its result."""
        record.attempts.paused = self._hub.now + GRACE
        self._hub.wake(record, record.attempts.paused)

    def unpause(self, record: Record) -> None:
        """End a pause if its time is over."""
        if 0 < record.attempts.paused <= self._hub.now:
            self._unpause(record)

    def _unpause(self, record: Record) -> None:
        self._paused.pop(record, None)
        record.attempts.paused = 0
        self.offer(record)

    def hand_out(self) -> list[tuple[int, pb.WorkItem]]:
        """Assign waiting work, each time to the matching worker with the fewest deliveries; returns the work items."""
        items: list[tuple[int, pb.WorkItem]] = []
        groups = deque(self._waiting if self._workers else ())
        while groups:
            group = groups.popleft()
            waiting = self._waiting[group]
            while waiting and (worker := self._worker_for(waiting[0])):
                record = waiting.popleft()
                record.attempts.queued = False
                if item := self._item(record, worker):
                    items.append((worker.number, item))
                else:  # it may have failed, which queues work for its caller
                    groups.extend(other for other in self._waiting if other not in groups and other != group)
            if not waiting:
                del self._waiting[group]
        return items

    def _worker_for(self, record: Record) -> Worker | None:
        group, avoid = record.group, record.attempts.avoid
        fitting = [worker for worker in self._workers.values() if worker.takes(group)]
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        return min(fitting, key=lambda worker: (worker.number == avoid, len(worker.deliveries)))

    def _item(self, record: Record, worker: Worker) -> pb.WorkItem | None:
        """The work item for a record's work, marked as delivered; None if there is nothing to do or it is too large."""
        self._tokens += 1
        token = f"{self._nonce}/{self._tokens}"
        delivery, item = Delivery(token, worker, record, []), pb.WorkItem()
        match record:
            case Activity():
                item.activityRequest.CopyFrom(record.request)
                delivery.token += f"/{record.id}"
            case Entity():
                self._hub.entities.fill(item.entityRequest, record, delivery)
                if not delivery.messages:
                    return None
                last = delivery.messages[-1].id
                delivery.token += f"/{len(delivery.messages)}/{last}/{_state_of(record)}/{record.id}"
            case Orchestration():
                self._hub.steps.fill(item.orchestratorRequest, record, delivery)
                if not delivery.events:
                    return None
        if (size := item.ByteSize()) > MESSAGE_LIMIT:
            problem = f"Its history and inputs have {size:,} bytes; a worker receives {MESSAGE_LIMIT:,} at most."
            self._fail(record, too_large(problem))
            return None
        item.completionToken = delivery.token
        self._begin(delivery)
        return item

    def _begin(self, delivery: Delivery) -> None:
        delivery.record.attempts.token = delivery.token
        self._deliveries[delivery.token] = delivery.worker.deliveries[delivery.token] = delivery
        delivery.worker.counts[delivery.record.group[0]] += 1

    # Work comes back -------------------------------------------------------------------------------------------

    def complete_step(self, request: pb.OrchestratorResponse) -> pb.CompleteTaskResponse:
        """An orchestrator's step is done."""
        if delivery := self._take(request.completionToken, "orchestration", request.instanceId):
            assert isinstance(delivery.record, Orchestration)
            for action in request.actions:
                shorten_failure(action.completeOrchestration)
            if request.isPartial:
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "CompleteOrchestratorTask in parts is not implemented.")
            self._done(delivery)
            delivery.worker.versions.add(delivery.record.group[2])
            self._hub.steps.complete(delivery.record, request, delivery)
        return pb.CompleteTaskResponse()

    def complete_activity(self, request: pb.ActivityResponse) -> pb.CompleteTaskResponse:
        """An activity is done: its orchestration sees the result, if it still runs."""
        self._recover(request.completionToken, "activity")
        if delivery := self._take(request.completionToken, "activity", request.instanceId, request.taskId):
            self._done(delivery)
            assert isinstance(delivery.record, Activity)
            shorten_failure(request)
            problem = payload_problem([(f"output of activity '{delivery.record.request.name}'", request.result.value)])
            if problem:
                request.failureDetails.CopyFrom(too_large(problem))
            self._finish_activity(delivery.record, request)
        return pb.CompleteTaskResponse()

    def complete_batch(self, request: pb.EntityBatchResult) -> pb.CompleteTaskResponse:
        """A batch of an entity's operations is done."""
        self._recover(request.completionToken, "entity")
        if delivery := self._take(request.completionToken, "entity"):
            assert isinstance(delivery.record, Entity)
            if not request.results and not request.HasField("failureDetails"):
                self._abandon(delivery)
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "There is no result for any of the operations.")
            self._done(delivery)
            for holder in (request, *(result.failure for result in request.results)):
                shorten_failure(holder)
            if problem := self._hub.entities.complete(delivery.record, request, delivery.messages):
                # A signal has no caller that sees the reason. So the worker receives it, and logs it.
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        return pb.CompleteTaskResponse()

    def abandon_step(self, request: pb.AbandonOrchestrationTaskRequest) -> pb.AbandonOrchestrationTaskResponse:
        """A worker declines an orchestrator's step."""
        if delivery := self._take(request.completionToken, "orchestration"):
            self._abandon(delivery)
        return pb.AbandonOrchestrationTaskResponse()

    def abandon_activity(self, request: pb.AbandonActivityTaskRequest) -> pb.AbandonActivityTaskResponse:
        """A worker declines an activity."""
        if delivery := self._take(request.completionToken, "activity"):
            self._abandon(delivery)
        return pb.AbandonActivityTaskResponse()

    def abandon_batch(self, request: pb.AbandonEntityTaskRequest) -> pb.AbandonEntityTaskResponse:
        """A worker declines a batch of an entity's operations."""
        if delivery := self._take(request.completionToken, "entity"):
            self._abandon(delivery)
        return pb.AbandonEntityTaskResponse()

    def _take(self, token: str, kind: Kind, instance: str | None = None, task: int | None = None) -> Delivery | None:
        """The delivery with this token; None if the work was redelivered, or nobody needs it any more.

        If the token is for other work than the worker says, raises Refused and redelivers the work.
        """
        delivery = self._deliveries.get(token)
        if delivery is None:
            return None
        match delivery.record:
            case Activity(request=request):
                fits = instance in (None, request.orchestrationInstance.instanceId) and task in (None, request.taskId)
            case record:
                fits = instance in (None, record.id)
        if delivery.record.group[0] != kind or not fits:
            self._abandon(delivery)
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "The completion token belongs to other work.")
        return delivery

    def _recover(self, token: str, kind: Kind) -> None:
        """Accept a token from before a restart, if its work is unfinished and has not changed.

        The token says what the work was: an activity; or the number of operations, the last one, and the entity's
        state. If the work was redelivered meanwhile, that delivery no longer counts.
        """
        nonce, _, rest = token.partition("/")
        if nonce == self._nonce or not rest:
            return
        record: Activity | Entity | None = None
        messages: list[Message] = []
        match kind, *rest.split("/", 4)[1:]:
            case "activity", number:
                found = (activities.get(int(number)) for activities in self._activities.values() if number.isdecimal())
                record = next((activity for activity in found if activity), None)
            case "entity", number, last, state, entity_id if number.isdecimal():
                record = self._hub.entities.busy(entity_id)
                messages = self._hub.entities.ready(record)[: int(number)] if record else []
                found = [len(messages), messages[-1].id, _state_of(record)] if record and messages else []
                if [number, last, state] != list(map(str, found)):
                    record = None
        if record is not None:
            self.withdraw(record)
            self._begin(Delivery(token, Worker(0, None, {}), record, messages))

    def _done(self, delivery: Delivery) -> None:
        self._end(delivery)
        delivery.record.attempts = Attempts()

    def _end(self, delivery: Delivery) -> None:
        delivery.record.attempts.token = ""
        del self._deliveries[delivery.token]
        del delivery.worker.deliveries[delivery.token]
        delivery.worker.counts[delivery.record.group[0]] -= 1

    def _abandon(self, delivery: Delivery) -> None:
        """Redeliver abandoned work after a pause that grows, or fail it after ABANDONS."""
        self._end(delivery)
        record, now = delivery.record, self._hub.now
        attempts = record.attempts
        attempts.avoid = delivery.worker.number
        pause = min(LONGEST_PAUSE, FIRST_PAUSE << min(attempts.abandoned, 20))
        attempts.abandoned += 1
        if not _may_be_a_version_rejection(delivery):
            attempts.counted += 1
            attempts.first = attempts.first or now
            if attempts.counted >= ABANDONS and now - attempts.first >= ABANDONED_FOR:
                minutes = (now - attempts.first) // SECOND // 60
                reason = f"Its workers abandoned it {attempts.counted} times in {minutes} minutes. Their logs say why."
                self._fail(record, failure("WorkAbandoned", reason))
                return
        attempts.paused = now + pause
        self._paused[record] = None
        self._hub.wake(record, attempts.paused)
        self._offer_again(record)

    def _fail(self, record: Record, details: pb.TaskFailureDetails) -> None:
        """Fail work without a worker."""
        record.attempts = Attempts()
        match record:
            case Activity():
                self._finish_activity(record, pb.ActivityResponse(failureDetails=details))
            case Entity():
                self._hub.entities.fail(record, details)
            case Orchestration():
                self._hub.orchestrations.fail(record, details)

    def _finish_activity(self, activity: Activity, response: pb.ActivityResponse) -> None:
        self._activities[activity.key].pop(activity.id)
        if not self._activities[activity.key]:
            del self._activities[activity.key]
        self._hub.changes.remove_activity(activity)
        caller = self._hub.orchestrations.live.get(activity.request.orchestrationInstance.instanceId)
        if caller is None or caller.key != activity.key:
            return
        task = activity.request.taskId
        if response.HasField("failureDetails"):
            failed = pb.TaskFailedEvent(taskScheduledId=task, failureDetails=response.failureDetails)
            self._hub.send(caller.id, self._hub.event(taskFailed=failed))
        else:
            completed = pb.TaskCompletedEvent(taskScheduledId=task)
            if response.HasField("result"):
                completed.result.CopyFrom(response.result)
            self._hub.send(caller.id, self._hub.event(taskCompleted=completed))


def _versions(filters: Iterable[Any]) -> dict[str, frozenset[str]]:
    """The accepted versions of each name; an empty set means all."""
    versions: dict[str, frozenset[str]] = {}
    for item in filters:
        so_far = versions.get(item.name, frozenset(item.versions))
        versions[item.name] = so_far | frozenset(item.versions) if so_far and item.versions else frozenset()
    return versions


def _state_of(entity: Entity) -> int:
    """A number that differs for each state of an entity."""
    return entity.modified if entity.state is not None else 0


def _may_be_a_version_rejection(delivery: Delivery) -> bool:
    """Whether the worker may have declined the orchestration because of its version, rather than failed.

    A worker sends the same message in both cases. One that has finished a step of this version does not decline it.
    """
    version = delivery.record.group[2]
    return delivery.record.group[0] == "orchestration" and version != "" and version not in delivery.worker.versions
