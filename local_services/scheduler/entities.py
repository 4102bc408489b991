"""Entities: batches of operations, signals, and locks on several entities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import durabletask.internal.orchestrator_service_pb2 as pb

from local_services.scheduler.limits import (
    PAYLOAD_LIMIT,
    check_entity_id,
    check_payload,
    check_text,
    payload_problem,
    too_large,
)
from local_services.scheduler.records import FINISHED, Entity, Message, Orchestration, Refused, micros, timestamp

if TYPE_CHECKING:
    from local_services.scheduler.hub import Hub
    from local_services.scheduler.work import Delivery

KEPT, KEPT_CHARACTERS = 1000, 8 * 1024 * 1024
"""Idle entities are kept in memory up to this number, and up to this total size of their states."""


class Entities:
    """The entities of a hub. All busy ones and some idle ones are held in memory."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._busy: dict[str, Entity] = {}  # with an inbox or a lock
        self._idle: dict[str, tuple[Entity, int]] = {}  # with the size of its state; the least recently used first
        self._idle_size = 0

    def load(self) -> None:
        """Offer all waiting operations to workers."""
        for entity in list(self._busy.values()):
            self._hub.work.restore(entity)
            self.proceed(entity)

    # Calls of clients ------------------------------------------------------------------------------------------

    def signal(self, request: pb.SignalEntityRequest) -> pb.SignalEntityResponse:
        """Queue an operation of an entity, now or later."""
        check_entity_id(request.instanceId)
        check_text("operation's name", request.name)
        if request.requestId:
            check_text("request's id", request.requestId)
        check_payload(f"input of operation '{request.name}'", request.input.value)
        signaled = pb.EntityOperationSignaledEvent(requestId=request.requestId, operation=request.name)
        signaled.targetInstanceId.value = request.instanceId
        if request.HasField("input"):
            signaled.input.CopyFrom(request.input)
        due = micros(request.scheduledTime) if request.HasField("scheduledTime") else None
        trace = request.parentTraceContext if request.HasField("parentTraceContext") else None
        self._hub.send(request.instanceId, self._hub.event(entityOperationSignaled=signaled), due, trace)
        return pb.SignalEntityResponse()

    def get(self, request: pb.GetEntityRequest) -> pb.GetEntityResponse:
        """An entity's metadata, and its state if the request includes it."""
        entity = self._find(request.instanceId)
        if entity is None:
            return pb.GetEntityResponse(exists=False)
        return pb.GetEntityResponse(exists=True, entity=metadata(entity, request.includeState))

    def busy(self, entity_id: str) -> Entity | None:
        """The entity, if it has unfinished operations."""
        entity = self._busy.get(entity_id)
        return entity if entity and entity.inbox else None

    def ready(self, entity: Entity) -> list[Message]:
        """The operations that may run now."""
        return list(_ready(entity))

    def clean(self, _: pb.CleanEntityStorageRequest) -> pb.CleanEntityStorageResponse:
        """Does nothing, like DTS: entities without state and unneeded locks are removed immediately."""
        return pb.CleanEntityStorageResponse()

    # Messages of orchestrations --------------------------------------------------------------------------------

    def told(self, sender: Orchestration, event: pb.HistoryEvent) -> None:
        """Handle an orchestration's signal, call, lock or unlock."""
        match event.WhichOneof("eventType"):
            case "entityOperationSignaled":
                signaled = event.entityOperationSignaled
                due = micros(signaled.scheduledTime) if signaled.HasField("scheduledTime") else None
                message = self._hub.event(entityOperationSignaled=signaled)
                self._hub.send(signaled.targetInstanceId.value, message, due, sender.caller_trace)
            case "entityOperationCalled":
                self.call(sender, event.entityOperationCalled)
            case "entityLockRequested":
                requested = pb.EntityLockRequestedEvent()
                requested.CopyFrom(event.entityLockRequested)
                requested.parentInstanceId.value, requested.position = sender.id, 0
                self._hub.send(requested.lockSet[0], self._hub.event(entityLockRequested=requested))
            case _:
                unlocked = event.entityUnlockSent
                entity = self._busy.get(unlocked.targetInstanceId.value)
                if entity and entity.lock == unlocked.criticalSectionId:
                    self._unlock(entity)

    def call(self, caller: Orchestration, call: pb.EntityOperationCalledEvent) -> None:
        """Queue an operation; the caller's current execution waits for the result."""
        called = pb.EntityOperationCalledEvent()
        called.CopyFrom(call)
        called.parentInstanceId.value, called.parentExecutionId.value = caller.id, caller.execution
        event = self._hub.event(entityOperationCalled=called)
        self._hub.send(called.targetInstanceId.value, event, None, caller.caller_trace)

    def call_again(self, caller: Orchestration, call: pb.EntityOperationCalledEvent) -> None:
        """Call again for a rewound execution; an operation that is still queued is not queued twice."""
        entity = self._busy.get(call.targetInstanceId.value)
        for message in entity.inbox if entity else ():
            called = message.event.entityOperationCalled
            if called.requestId == call.requestId and called.parentInstanceId.value == caller.id:
                called.parentExecutionId.value = caller.execution
                self._hub.changes.replace_message(message)
                return
        self.call(caller, call)

    def release(self, instance_id: str) -> None:
        """An orchestration has ended: release its locks, and remove its requests for locks."""
        for entity in list(self._busy.values()):
            if entity.owner == instance_id:
                self._unlock(entity)
            waiting = [message for message in entity.inbox if _lock_request_of(message) == instance_id]
            if waiting:
                self._hub.take_back(waiting)
                entity.inbox = [message for message in entity.inbox if message not in waiting]
                self.proceed(entity)

    # Operations ------------------------------------------------------------------------------------------------

    def arrive(self, message: Message) -> None:
        """Queue an operation or a request for the lock."""
        entity = self.find_or_make(message.target)
        entity.inbox.append(message)
        self.proceed(entity)

    def proceed(self, entity: Entity) -> None:
        """Grant the lock if the next message asks for it, and offer waiting operations to workers."""
        while entity.inbox and not entity.lock and not entity.attempts.token and _lock_request_of(entity.inbox[0]):
            self._grant(entity, entity.inbox.pop(0))
        if next(_ready(entity), None):
            self._hub.work.offer(entity)
        elif entity.attempts.queued:
            self._hub.work.withdraw(entity)
        self.keep(entity)

    def fill(self, item: pb.EntityBatchRequest, entity: Entity, delivery: Delivery) -> None:
        """Put as many ready operations into a work item as fit."""
        item.instanceId = entity.id
        if entity.state is not None:
            item.entityState.value = entity.state
        size = 0
        for message in _ready(entity):
            size += message.event.ByteSize()
            if delivery.messages and size > PAYLOAD_LIMIT:
                break
            delivery.messages.append(message)
            operation = _operation(message)
            request = item.operations.add(operation=operation.operation, requestId=operation.requestId)
            if operation.HasField("input"):
                request.input.CopyFrom(operation.input)
            if message.trace is not None:
                request.traceContext.CopyFrom(message.trace)

    def complete(self, entity: Entity, result: pb.EntityBatchResult, messages: list[Message]) -> str | None:
        """Store the new state, send results to callers, do the operations' actions; returns what is too large."""
        payloads = [(f"state of entity '{entity.id}'", result.entityState.value)]
        payloads += [(f"result of entity '{entity.id}'", r.success.result.value) for r in result.results]
        payloads += [
            (f"input that entity '{entity.id}' sends", payload)
            for action in result.actions
            for payload in (action.sendSignal.input.value, action.startNewOrchestration.input.value)
        ]
        if problem := payload_problem(payloads):
            self._fail(entity, messages, too_large(problem))
            return problem
        if result.HasField("failureDetails"):
            self._fail(entity, messages, result.failureDetails)
            return None
        entity.state = result.entityState.value or None
        done = messages[: len(result.results)]  # operations without a result were not done, and stay queued
        for message, outcome in zip(done, result.results, strict=False):
            self._answer(message, outcome)
        self._finish(entity, done)
        for action in result.actions:
            self._act(action)
        return None

    def fail(self, entity: Entity, details: pb.TaskFailureDetails) -> None:
        """Fail the ready operations without a worker; the state does not change."""
        delivery_size, messages = 0, []
        for message in _ready(entity):
            delivery_size += message.event.ByteSize()
            if messages and delivery_size > PAYLOAD_LIMIT:
                break
            messages.append(message)
        self._fail(entity, messages, details)

    def _fail(self, entity: Entity, messages: list[Message], details: pb.TaskFailureDetails) -> None:
        for message in messages:
            self._answer(message, pb.OperationResult(failure=pb.OperationResultFailure(failureDetails=details)))
        self._finish(entity, messages)

    def _finish(self, entity: Entity, done: list[Message]) -> None:
        seen = set(done)
        entity.inbox = [message for message in entity.inbox if message not in seen]
        self._hub.changes.remove_messages(done)
        entity.modified = max(self._hub.now, entity.modified + 1)
        self._save(entity)
        self.proceed(entity)

    def _answer(self, message: Message, outcome: pb.OperationResult) -> None:
        """Send the result to the execution that called, if it still runs."""
        if not message.event.HasField("entityOperationCalled"):
            return
        called = message.event.entityOperationCalled
        caller = self._hub.orchestrations.live.get(called.parentInstanceId.value)
        if caller is None or caller.execution != called.parentExecutionId.value:
            return
        if outcome.HasField("failure"):
            failed = pb.EntityOperationFailedEvent(requestId=called.requestId)
            failed.failureDetails.CopyFrom(outcome.failure.failureDetails)
            self._hub.send(caller.id, self._hub.event(entityOperationFailed=failed))
        else:
            completed = pb.EntityOperationCompletedEvent(requestId=called.requestId)
            if outcome.success.HasField("result"):
                completed.output.CopyFrom(outcome.success.result)
            self._hub.send(caller.id, self._hub.event(entityOperationCompleted=completed))

    def _act(self, action: pb.OperationAction) -> None:
        """Do an operation's action. An invalid one is dropped, because nobody waits for it."""
        try:
            match action.WhichOneof("operationActionType"):
                case "sendSignal":
                    sent = action.sendSignal
                    request = pb.SignalEntityRequest(instanceId=sent.instanceId, name=sent.name)
                    for field in ("input", "scheduledTime", "parentTraceContext"):
                        if sent.HasField(field):
                            getattr(request, field).CopyFrom(getattr(sent, field))
                    request.requestId = f"{self._hub.next_id():x}"
                    self.signal(request)
                case "startNewOrchestration":
                    new = action.startNewOrchestration
                    start = pb.CreateInstanceRequest(instanceId=new.instanceId, name=new.name)
                    start.orchestrationIdReusePolicy.replaceableStatus.extend(FINISHED)  # pyright: ignore[reportArgumentType]
                    for field in ("version", "input", "parentTraceContext"):
                        if new.HasField(field):
                            getattr(start, field).CopyFrom(getattr(new, field))
                    if new.HasField("scheduledTime"):
                        start.scheduledStartTimestamp.CopyFrom(new.scheduledTime)
                    self._hub.orchestrations.start(start)
                case _:
                    pass
        except Refused:
            pass

    # Locks -----------------------------------------------------------------------------------------------------

    def _grant(self, entity: Entity, message: Message) -> None:
        """Lock the entity, then request the next lock of the set, or tell the orchestration that it has all of them.

        The SDK sorts the set, so all orchestrations lock in the same order and cannot deadlock.
        """
        self._hub.changes.remove_messages([message])
        requested = message.event.entityLockRequested
        entity.lock, entity.owner = requested.criticalSectionId, requested.parentInstanceId.value
        self._save(entity)
        following = requested.position + 1
        if following < len(requested.lockSet):
            requested.position = following
            self._hub.send(requested.lockSet[following], self._hub.event(entityLockRequested=requested))
        else:
            granted = pb.EntityLockGrantedEvent(criticalSectionId=requested.criticalSectionId)
            self._hub.send(entity.owner, self._hub.event(entityLockGranted=granted))

    def _unlock(self, entity: Entity) -> None:
        entity.lock = entity.owner = ""
        self._save(entity)
        self.proceed(entity)

    # In memory and on disk -------------------------------------------------------------------------------------

    def find_or_make(self, entity_id: str) -> Entity:
        """The entity. A new one is stored when it has a state or is locked."""
        entity = self._find(entity_id) or Entity(entity_id, self._hub.now)
        self._take_from_idle(entity_id)
        self._busy[entity_id] = entity
        return entity

    def _find(self, entity_id: str) -> Entity | None:
        if entity := self._busy.get(entity_id):
            return entity
        entity = self._take_from_idle(entity_id)
        if entity is None and entity_id not in self._hub.changes.removed_entities:
            entity = self._hub.records.entity(entity_id)
        if entity:
            self.keep(entity)
        return entity

    def keep(self, entity: Entity) -> None:
        """Hold an entity in memory while it is busy, and afterwards while there is room.

        An idle entity without state is removed.
        """
        if entity.inbox or entity.lock:
            self._busy[entity.id] = entity
            return
        self._busy.pop(entity.id, None)
        if entity.state is None:
            self._hub.changes.remove_entity(entity.id)
            return
        size = len(entity.state)
        self._idle[entity.id] = entity, size
        self._idle_size += size
        while len(self._idle) > KEPT or self._idle_size > KEPT_CHARACTERS:
            self._take_from_idle(next(iter(self._idle)))

    def _take_from_idle(self, entity_id: str) -> Entity | None:
        entity, size = self._idle.pop(entity_id, (None, 0))
        self._idle_size -= size
        return entity

    def _save(self, entity: Entity) -> None:
        self._hub.changes.entities[entity.id] = entity


def metadata(entity: Entity, with_state: bool) -> pb.EntityMetadata:
    """An entity in the protocol's form. `lockedBy` is the orchestration that has locked it."""
    result = pb.EntityMetadata(
        instanceId=entity.id, lastModifiedTime=timestamp(entity.modified), backlogQueueSize=len(entity.inbox)
    )
    if entity.owner:
        result.lockedBy.value = entity.owner
    if with_state and entity.state is not None:
        result.serializedState.value = entity.state
    return result


def _ready(entity: Entity) -> Iterator[Message]:
    """The operations that may run now: those before the next lock request; while locked, only the owner's."""
    for message in entity.inbox:
        if entity.lock:
            called = message.event.entityOperationCalled
            if called.parentInstanceId.value == entity.owner:
                yield message
        elif _lock_request_of(message):
            return
        else:
            yield message


def _operation(message: Message) -> pb.EntityOperationCalledEvent | pb.EntityOperationSignaledEvent:
    if message.event.HasField("entityOperationCalled"):
        return message.event.entityOperationCalled
    return message.event.entityOperationSignaled


def _lock_request_of(message: Message) -> str:
    """The orchestration that requests the lock with this message; '' if it is an operation."""
    return message.event.entityLockRequested.parentInstanceId.value
