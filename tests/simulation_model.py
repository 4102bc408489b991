"""A simple model of what a task hub has acknowledged, compared with the hub after each call.

For each orchestration the model keeps the list of everything that its current execution received ("told": its start,
events, results, timers, in order), and for each entity its state and the waiting operations. Every work item, the hub's
memory and the stored records must agree with it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc

from local_services.scheduler.hub import Hub
from local_services.scheduler.records import (
    COMPLETED,
    CONTINUED_AS_NEW,
    FAILED,
    FINISHED,
    PENDING,
    RUNNING,
    SUSPENDED,
    TERMINATED,
    micros,
)

Told = tuple[Any, ...]
Answer = Any  # a response, or the status of a refusal

NOT_FOUND, EXISTS = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS
NOT_NOW, WRONG = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT


class Wrong(Exception):
    """The scheduler has made an error."""


def expect(condition: Any, what: str, *details: Any) -> None:
    """Raise Wrong unless the condition is true."""
    if not condition:
        raise Wrong(" ".join([what, *(f"\n    {detail}" for detail in details)]))


def same(what: str, actual: Any, expected: Any) -> None:
    """Raise Wrong unless both are equal."""
    expect(actual == expected, f"{what} differs:", f"is       {actual}", f"expected {expected}")


def told_by(events: Iterable[pb.HistoryEvent]) -> list[Told]:
    """What an orchestration receives with these events of its history; granted locks are checked elsewhere."""
    told: list[Told] = []
    for event in events:
        match event.WhichOneof("eventType"):
            case "executionStarted":
                told.append(("start", event.executionStarted.input.value))
            case "eventRaised":
                told.append(("event", event.eventRaised.name, event.eventRaised.input.value))
            case "taskCompleted":
                told.append(("task", event.taskCompleted.taskScheduledId, event.taskCompleted.result.value))
            case "taskFailed":
                told.append(("task", event.taskFailed.taskScheduledId, "failed"))
            case "timerFired":
                told.append(("timer", event.timerFired.timerId))
            case "subOrchestrationInstanceCompleted":
                completed = event.subOrchestrationInstanceCompleted
                told.append(("child", completed.taskScheduledId, completed.result.value))
            case "subOrchestrationInstanceFailed":
                told.append(("child", event.subOrchestrationInstanceFailed.taskScheduledId, "failed"))
            case "entityOperationCompleted":
                completed = event.entityOperationCompleted
                told.append(("answer", completed.requestId, completed.output.value))
            case "entityOperationFailed":
                told.append(("answer", event.entityOperationFailed.requestId, "failed"))
            case "executionSuspended" | "executionResumed" | "executionRewound" as kind:
                told.append((kind,))
    return told


def requests_to_lock(events: Iterable[pb.HistoryEvent]) -> dict[str, list[str]]:
    """The critical sections that these events request, and the entities of each."""
    asked = (event.entityLockRequested for event in events if event.HasField("entityLockRequested"))
    return {request.criticalSectionId: list(request.lockSet) for request in asked}


@dataclass(eq=False)
class Instance:
    """An orchestration. `run` numbers its executions; `seen` is how much of `told` its finished steps have seen."""

    id: str
    name: str
    input: str
    run: int
    status: int = PENDING
    told: list[Told] = field(default_factory=list)
    seen: int = 0
    tasks: dict[int, str] = field(default_factory=dict)  # unfinished activities, with their inputs
    parent: tuple[str, int, int] | None = None  # id, run and task
    output: str = ""
    execution: str = ""  # its id, after a worker has received it

    @property
    def lives(self) -> bool:
        """Whether it is not finished."""
        return self.status not in FINISHED


@dataclass(eq=False)
class Operation:
    """An operation that an entity has not done. Operations from one sender are done in the order of sending."""

    tag: str  # in its input
    sender: str
    request: str = ""
    caller: tuple[str, int] | None = None  # who waits for the answer


@dataclass(eq=False)
class Thing:
    """An entity."""

    state: list[str] | None = None
    modified: int = 0
    queue: list[Operation] = field(default_factory=list)
    holder: tuple[str, int] | None = None  # the execution that knows that it has the lock


@dataclass(eq=False)
class Delivery:
    """A work item that a worker has, or had."""

    token: str
    worker: int
    item: pb.WorkItem
    instance: str = ""
    run: int = 0
    count: int = 0  # how much of the instance's `told` it contains
    operations: list[Operation] = field(default_factory=list)


class Model:
    """Everything that a hub has acknowledged."""

    def __init__(self) -> None:
        self.now = 0
        self.instances: dict[str, Instance] = {}
        self.things: dict[str, Thing] = {}
        self.deliveries: dict[str, Delivery] = {}  # by token: those whose completion counts
        self.answers: dict[str, bytes] = {}  # by request id
        self._sent: dict[str, Delivery] = {}  # all deliveries since the last restart
        self._former: dict[str, Delivery] = {}  # all earlier ones
        self._schedule: list[tuple[int, int, str, int, Any]] = []  # due, number, for whom, its run, what
        self._numbers = 0
        self._checked: set[tuple[Hub, int, int]] = set()

    # Calls of clients ------------------------------------------------------------------------------------------

    def called(self, method: str, request: Any, request_id: str, answer: Answer) -> None:
        """A call was answered: it has had its effect, unless it was repeated."""
        if request_id in self.answers:
            same(f"the answer to a repeated {method}", answer.SerializeToString(), self.answers[request_id])
            return
        refusal = getattr(self, f"_{method}")(request, answer)
        if refusal:
            same(f"the refusal of {method}", answer, refusal)
        else:
            expect(not isinstance(answer, grpc.StatusCode), f"{method} was refused: {answer}")
            if request_id:
                self.answers[request_id] = answer.SerializeToString()

    def _StartInstance(self, request: Any, answer: Answer) -> Answer | None:
        if old := self.instances.get(request.instanceId):
            if old.status not in request.orchestrationIdReusePolicy.replaceableStatus:
                return EXISTS
            if old.lives:
                self._finish(old, TERMINATED, "")
            self._remove(old)
        start_at = micros(request.scheduledStartTimestamp) if request.HasField("scheduledStartTimestamp") else 0
        self._create(request.instanceId, request.name, request.input.value, start_at)
        return None

    def _RaiseEvent(self, request: Any, _: Answer) -> Answer | None:
        return self._to_living(request, lambda to: self._tell(to, ("event", request.name, request.input.value)))

    def _SuspendInstance(self, request: Any, _: Answer) -> Answer | None:
        def suspend(instance: Instance) -> None:
            if instance.status != SUSPENDED:
                instance.status = SUSPENDED
                self._tell(instance, ("executionSuspended",))

        return self._to_living(request, suspend)

    def _ResumeInstance(self, request: Any, _: Answer) -> Answer | None:
        def resume(instance: Instance) -> None:
            if instance.status == SUSPENDED:
                instance.status = RUNNING
                self._tell(instance, ("executionResumed",))

        return self._to_living(request, resume)

    def _TerminateInstance(self, request: Any, _: Answer) -> Answer | None:
        return self._to_living(request, lambda to: self._terminate(to, request.output.value, request.recursive))

    def _to_living(self, request: Any, effect: Any) -> Answer | None:
        instance = self.instances.get(request.instanceId)
        if instance is None:
            return NOT_FOUND
        if instance.lives:
            effect(instance)
        return None

    def _RestartInstance(self, request: Any, answer: Answer) -> Answer | None:
        old = self.instances.get(request.instanceId)
        if old is None:
            return NOT_FOUND
        if request.restartWithNewInstanceId:
            expect(answer.instanceId not in self.instances, "the new instance id exists already")
        elif old.lives:
            return NOT_NOW
        else:
            self._remove(old)
        self._create(answer.instanceId, old.name, old.input)
        return None

    def _RewindInstance(self, request: Any, _: Answer) -> Answer | None:
        instance = self.instances.get(request.instanceId)
        if instance is None:
            return NOT_FOUND
        if instance.status != FAILED:
            return NOT_NOW
        if instance.parent:
            instance.parent = (*instance.parent[:2], 0)  # its caller has already seen that it failed
        self._rewind(instance)
        return None

    def _PurgeInstances(self, request: Any, answer: Answer) -> Answer | None:
        wanted = list(request.purgeInstanceFilter.runtimeStatus)
        ids = [i.id for i in self.instances.values() if i.status in wanted] if wanted else [request.instanceId]
        same("the number of purged", answer.deletedInstanceCount, sum(self._purge(i, request.recursive) for i in ids))
        return None

    def _SignalEntity(self, request: Any, _: Answer) -> Answer | None:
        due = micros(request.scheduledTime) if request.HasField("scheduledTime") else 0
        self._queue(request.instanceId, Operation(json.loads(request.input.value), "client"), due)
        return None

    def _CleanEntityStorage(self, *_: Any) -> Answer | None:
        return None

    # Work ------------------------------------------------------------------------------------------------------

    def delivered(self, worker: int, item: pb.WorkItem) -> Delivery:
        """A worker has received an item: check it."""
        expect(item.completionToken not in self.deliveries, "a token was used twice")
        delivery = Delivery(item.completionToken, worker, item)
        match item.WhichOneof("request"):
            case "orchestratorRequest":
                self._check_step(item.orchestratorRequest, delivery)
            case "activityRequest":
                request = item.activityRequest
                delivery.instance = request.orchestrationInstance.instanceId
                instance = self.instances.get(delivery.instance)
                execution = request.orchestrationInstance.executionId.value
                if instance and instance.execution in ("", execution):
                    delivery.run, instance.execution = instance.run, execution
                    if instance.lives:
                        same("the activity's input", request.input.value, instance.tasks.get(request.taskId))
            case _:
                self._check_batch(item.entityRequest, delivery)
        instance = self.instances.get(delivery.instance)
        is_needed = instance is None or instance.lives  # after a failed replay the SDK calls activities again
        for other in self.deliveries.values() if is_needed else ():
            expect(_subject(other.item) != _subject(item), "two workers have the same work", _subject(item))
        self.deliveries[delivery.token] = self._sent[delivery.token] = delivery
        return delivery

    def _check_step(self, request: pb.OrchestratorRequest, delivery: Delivery) -> None:
        instance = self.instances.get(request.instanceId)
        expect(instance and instance.lives, f"{request.instanceId} has a step, but does not run")
        assert instance
        expect(instance.status != SUSPENDED, f"{instance.id} has a step, but is suspended")
        expect(instance.told[0][0] == "start", f"{instance.id} has a step before its start")
        execution = request.executionId.value
        expect(instance.execution in ("", execution), f"{instance.id} has another execution id")
        instance.execution = execution
        for event in [*request.pastEvents, *request.newEvents]:
            if event.HasField("executionStarted"):
                caller = event.executionStarted.parentInstance.orchestrationInstance.instanceId
                same(f"who has called {instance.id}", caller, instance.parent[0] if instance.parent else "")
        told, unseen = instance.told, instance.told[instance.seen :]
        if ("executionRewound",) in unseen:
            told = told[: instance.seen + unseen.index(("executionRewound",)) + 1]
        past, new = told_by(request.pastEvents), told_by(request.newEvents)
        same(f"what {instance.id} has received", [*past, *new], told)
        same(f"what {instance.id} has seen", past, told[: instance.seen])
        delivery.instance, delivery.run, delivery.count = instance.id, instance.run, len(told)
        locks = requests_to_lock(request.pastEvents)
        for event in request.newEvents:
            if event.HasField("entityLockGranted"):
                for entity in locks.pop(event.entityLockGranted.criticalSectionId):
                    thing, holder = self.thing(entity), (instance.id, instance.run)
                    expect(thing.holder in (None, holder), f"{entity} is locked twice: {thing.holder} and {holder}")
                    thing.holder = holder

    def _check_batch(self, request: pb.EntityBatchRequest, delivery: Delivery) -> None:
        thing = self.thing(request.instanceId)
        state = json.loads(request.entityState.value) if request.HasField("entityState") else None
        same(f"the state of {request.instanceId}", state, thing.state)
        left = list(thing.queue)
        for sent in request.operations:
            tag = json.loads(sent.input.value)
            operation = next((operation for operation in left if operation.tag == tag), None)
            expect(operation, f"{request.instanceId} receives {tag}, which nobody sent, or which is done")
            assert operation
            first = next(other for other in left if other.sender == operation.sender)
            expect(first is operation, f"{request.instanceId} receives {tag} before {first.tag}")
            if thing.holder and self._runs(thing.holder):
                expect(operation.caller and operation.caller[0] == thing.holder[0], f"{tag} runs despite the lock")
            left.remove(operation)
            delivery.operations.append(operation)

    def ended(self, worker: int | None) -> None:
        """A worker's stream has ended, or with None all have: their work must be redelivered."""
        self.deliveries = {t: d for t, d in self.deliveries.items() if worker is not None and d.worker != worker}
        if worker is None:
            self._former |= self._sent
            self._sent = {}

    def _recovered(self, method: str, token: str, hub: Hub) -> Delivery | None:
        """Work from before a restart that the hub has accepted: it was unfinished, and no other worker has it now."""
        delivery = self._former.get(token)
        match method, delivery and delivery.item.WhichOneof("request"):
            case "CompleteActivityTask", "activityRequest":
                assert delivery
                instance, task = self.instances.get(delivery.instance), delivery.item.activityRequest.taskId
                if instance is None or instance.run != delivery.run or task not in instance.tasks:
                    return None
            case "CompleteEntityTask", "entityRequest":
                assert delivery
                entity = delivery.item.entityRequest.instanceId
                busy, first = hub.entities.busy(entity), delivery.operations[0]
                waits = any(_tag(message.event) == first.tag for message in (busy.inbox if busy else ()))
                if waits or first not in self.thing(entity).queue:
                    return None
                missing = [o.tag for o in delivery.operations if o not in self.thing(entity).queue]
                expect(not missing, f"{entity} does {missing} twice")
            case _:
                return None
        for other in list(self.deliveries.values()):
            if _subject(other.item) == _subject(delivery.item):
                del self.deliveries[other.token]
        return delivery

    def completed(self, method: str, response: Any, answer: Answer, hub: Hub) -> None:
        """A worker has completed or abandoned its work."""
        token = response.completionToken
        delivery = self.deliveries.pop(token, None) or self._recovered(method, token, hub)
        instance = self.instances.get(delivery.instance) if delivery else None
        fits = delivery and _fits(method, response, delivery.item)
        if method.startswith("Abandon"):
            expect(not isinstance(answer, grpc.StatusCode), f"{method} was refused: {answer}")
        elif delivery and not fits:
            same("the answer to a completion that does not fit", answer, WRONG)
        else:
            expect(not isinstance(answer, grpc.StatusCode), f"{method} was refused: {answer}")
            if delivery and method == "CompleteOrchestratorTask":
                assert instance
                self._stepped(instance, response, delivery)
            elif delivery and method == "CompleteActivityTask":
                assert instance
                if instance.tasks.pop(response.taskId, None) is not None and instance.lives:
                    failed = response.HasField("failureDetails")
                    self._tell(instance, ("task", response.taskId, "failed" if failed else response.result.value))
            elif delivery:
                self._batched(delivery.item.entityRequest, response, delivery.operations)

    def _stepped(self, instance: Instance, response: pb.OrchestratorResponse, delivery: Delivery) -> None:
        instance.seen = delivery.count
        if instance.status == PENDING:
            instance.status = RUNNING
        ending: pb.CompleteOrchestrationAction | None = None
        for action in response.actions:
            match action.WhichOneof("orchestratorActionType"):
                case "completeOrchestration":
                    ending = action.completeOrchestration
                case "rewindOrchestration":
                    self._rewound(instance, list(action.rewindOrchestration.newHistory))
                case "scheduleTask":
                    instance.tasks[action.id] = action.scheduleTask.input.value
                case "createTimer":
                    self._at(micros(action.createTimer.fireAt), instance, ("timer", action.id))
                case "createSubOrchestration":
                    self._start_child(instance, action.id, action.createSubOrchestration)
                case "sendEvent":
                    to = self.instances.get(action.sendEvent.instance.instanceId)
                    if to and to.lives:
                        self._tell(to, ("event", action.sendEvent.name, action.sendEvent.data.value))
                case _:
                    self._message(instance, action.sendEntityMessage)
        if ending is not None and ending.orchestrationStatus == CONTINUED_AS_NEW:
            late = [told for told in instance.told[instance.seen :] if told[0] in _CARRIED]
            was, parent = instance.status, instance.parent
            self._remove(instance)
            new = self._create(instance.id, instance.name, ending.result.value, parent=parent)
            for told in [*told_by(ending.carryoverEvents), *late]:
                self._tell(new, told)
            if was == SUSPENDED:
                new.status = SUSPENDED
        elif ending is not None:
            del instance.told[instance.seen :]  # no step will see it
            failed = ending.orchestrationStatus == FAILED
            self._finish(instance, ending.orchestrationStatus, "failed" if failed else ending.result.value)

    def _message(self, sender: Instance, message: pb.SendEntityMessageAction) -> None:
        match message.WhichOneof("EntityMessageType"):
            case "entityOperationSignaled":
                sent = message.entityOperationSignaled
                due = micros(sent.scheduledTime) if sent.HasField("scheduledTime") else 0
                self._queue(sent.targetInstanceId.value, Operation(json.loads(sent.input.value), sender.id), due)
            case "entityOperationCalled":
                self._call(sender, message.entityOperationCalled)
            case "entityUnlockSent":
                self.thing(message.entityUnlockSent.targetInstanceId.value).holder = None

    def _call(self, caller: Instance, call: pb.EntityOperationCalledEvent) -> None:
        tag = json.loads(call.input.value)
        operation = Operation(tag, caller.id, call.requestId, (caller.id, caller.run))
        self._queue(call.targetInstanceId.value, operation)

    def _call_again(self, caller: Instance, call: pb.EntityOperationCalledEvent) -> None:
        for operation in self.thing(call.targetInstanceId.value).queue:
            if operation.request == call.requestId and operation.sender == caller.id:
                operation.caller = (caller.id, caller.run)
                return
        self._call(caller, call)

    def _batched(
        self, request: pb.EntityBatchRequest, result: pb.EntityBatchResult, operations: list[Operation]
    ) -> None:
        entity, thing = request.instanceId, self.thing(request.instanceId)
        state = json.loads(request.entityState.value) if request.HasField("entityState") else None
        same(f"the state of {entity} on which the result is based", state, thing.state)
        failed = result.HasField("failureDetails")
        if not failed:
            operations = operations[: len(result.results)]
            thing.state = json.loads(result.entityState.value) if result.entityState.value else None
        for n, operation in enumerate(operations):
            thing.queue.remove(operation)
            if operation.caller and self._runs(operation.caller):
                is_failure = failed or result.results[n].HasField("failure")
                answer = "failed" if is_failure else result.results[n].success.result.value
                self._tell(self.instances[operation.caller[0]], ("answer", operation.request, answer))
        thing.modified = -thing.modified  # it must be different afterwards
        for action in [] if failed else result.actions:
            if action.HasField("sendSignal"):
                tag = json.loads(action.sendSignal.input.value)
                self._queue(action.sendSignal.instanceId, Operation(tag, entity))
            else:
                new = action.startNewOrchestration
                old = self.instances.get(new.instanceId)
                if old and old.lives:
                    continue
                if old:
                    self._remove(old)
                self._create(new.instanceId, new.name, new.input.value)

    # Time ------------------------------------------------------------------------------------------------------

    def ticked(self) -> None:
        """Deliver what is due."""
        for entry in sorted(self._schedule, key=lambda entry: entry[:2]):
            if entry[0] <= self.now:
                self._schedule.remove(entry)
                self._arrive(*entry[2:])

    def _at(self, due: int, instance: Instance, told: Told) -> None:
        self._later(due, instance.id, instance.run, told)

    def _later(self, due: int, target: str, run: int, what: Any) -> None:
        if due <= self.now:
            self._arrive(target, run, what)
        else:
            self._numbers += 1
            self._schedule.append((due, self._numbers, target, run, what))

    def _arrive(self, target: str, run: int, what: Any) -> None:
        if isinstance(what, Operation):
            self.thing(target).queue.append(what)
        elif self._runs((target, run)):
            self._tell(self.instances[target], what)

    def _queue(self, entity: str, operation: Operation, due: int = 0) -> None:
        if due > self.now:
            operation.sender += " later"
        self._later(due, entity, 0, operation)

    # Orchestrations --------------------------------------------------------------------------------------------

    def thing(self, entity: str) -> Thing:
        """The entity; it need not have a state."""
        return self.things.setdefault(entity, Thing())

    def _tell(self, instance: Instance, told: Told) -> None:
        instance.told.insert(0 if told[0] == "start" else len(instance.told), told)

    def _runs(self, execution: tuple[str, int]) -> bool:
        instance = self.instances.get(execution[0])
        return bool(instance and instance.run == execution[1] and instance.lives)

    def _create(
        self, instance_id: str, name: str, given: str, start_at: int = 0, parent: tuple[str, int, int] | None = None
    ) -> Instance:
        self._numbers += 1
        instance = self.instances[instance_id] = Instance(instance_id, name, given, self._numbers, parent=parent)
        self._at(start_at, instance, ("start", given))
        return instance

    def _start_child(self, parent: Instance, task: int, call: Any) -> None:
        existing = self.instances.get(call.instanceId)
        if existing and existing.lives:
            self._tell(parent, ("child", task, "failed"))
            return
        if existing:
            self._remove(existing)
        self._create(call.instanceId, call.name, call.input.value, 0, (parent.id, parent.run, task))

    def _leave(self, instance: Instance) -> None:
        self._take_back("orchestratorRequest", instance)
        self._schedule = [entry for entry in self._schedule if entry[2:4] != (instance.id, instance.run)]
        for thing in self.things.values():
            if thing.holder == (instance.id, instance.run):
                thing.holder = None

    def _remove(self, instance: Instance) -> None:
        self._leave(instance)
        self._take_back("activityRequest", instance)
        self.instances.pop(instance.id, None)

    def _take_back(self, kind: str, instance: Instance) -> None:
        """The completions of this execution's deliveries do not count any more."""
        for delivery in list(self.deliveries.values()):
            if delivery.item.HasField(kind) and (delivery.instance, delivery.run) == (instance.id, instance.run):
                del self.deliveries[delivery.token]

    def _finish(self, instance: Instance, status: int, output: str) -> None:
        instance.status, instance.output, instance.seen = status, output, len(instance.told)
        self._leave(instance)
        self._tell_parent(instance)

    def _tell_parent(self, child: Instance) -> None:
        if child.parent and child.parent[2] and self._runs(child.parent[:2]):
            output = child.output if child.status == COMPLETED else "failed"
            self._tell(self.instances[child.parent[0]], ("child", child.parent[2], output))

    def _children(self, parent: Instance) -> list[Instance]:
        return [i for i in self.instances.values() if i.parent and i.parent[:2] == (parent.id, parent.run)]

    def _terminate(self, instance: Instance, output: str, recursive: bool) -> None:
        self._finish(instance, TERMINATED, output)
        for child in self._children(instance) if recursive else []:
            if child.lives:
                self._terminate(child, output, recursive)

    def _purge(self, instance_id: str, recursive: bool) -> int:
        instance = self.instances.get(instance_id)
        if instance is None or instance.lives:
            return 0
        children = self._children(instance) if recursive else []
        self._remove(instance)
        return 1 + sum(self._purge(child.id, recursive) for child in children)

    def _rewind(self, instance: Instance) -> None:
        instance.status, instance.output = RUNNING, ""
        self._tell(instance, ("executionRewound",))

    def _rewound(self, instance: Instance, history: list[pb.HistoryEvent]) -> None:
        """It continues with a history without the failures, and what it waits for is done again."""
        late = instance.told[instance.seen :]
        self._leave(instance)
        self._take_back("activityRequest", instance)
        children = self._children(instance)
        self._numbers += 1
        instance.run, instance.execution, instance.tasks = self._numbers, "", {}
        for child in children:
            assert child.parent
            child.parent = (instance.id, instance.run, child.parent[2])
        instance.told = told_by(history)
        instance.seen = len(instance.told)
        ended = {told[1] for told in [*instance.told, *late] if told[0] in ("task", "timer", "child", "answer")}
        for event in history:
            if event.eventId in ended or event.entityOperationCalled.requestId in ended:
                continue
            ended.add(event.eventId)
            match event.WhichOneof("eventType"):
                case "taskScheduled":
                    instance.tasks[event.eventId] = event.taskScheduled.input.value
                case "timerCreated":
                    self._at(micros(event.timerCreated.fireAt), instance, ("timer", event.eventId))
                case "entityOperationCalled":
                    self._call_again(instance, event.entityOperationCalled)
                case "subOrchestrationInstanceCreated":
                    created = event.subOrchestrationInstanceCreated
                    child = self.instances.get(created.instanceId)
                    if child is None or not child.parent or child.parent[:2] != (instance.id, instance.run):
                        self._start_child(instance, event.eventId, created)
                        continue
                    child.parent = (instance.id, instance.run, event.eventId)
                    if child.status == FAILED:
                        self._rewind(child)
                    elif not child.lives:
                        self._tell_parent(child)
        instance.told += late

    # The hub ---------------------------------------------------------------------------------------------------

    def check(self, hub: Hub) -> None:
        """Check that the hub's memory and its store contain what it has acknowledged, and nothing else."""
        live = hub.orchestrations.live
        same("what runs", sorted(live), sorted(i.id for i in self.instances.values() if i.lives))
        tasks: dict[tuple[str, str, int], str] = {}
        for instance in self.instances.values():
            ended = (hub, instance.run, instance.status)
            if not instance.lives and ended in self._checked:
                continue  # it does not change any more, so the check after the next restart is enough
            self._checked.add(ended)
            stored = hub.orchestrations.find(instance.id)
            assert stored
            name = instance.id
            same(f"{name}'s name and input", (stored.name, stored.input), (instance.name, instance.input))
            status = RUNNING if stored.status == PENDING and instance.status == RUNNING else stored.status
            same(f"{name}'s status", pb.OrchestrationStatus.Name(status), pb.OrchestrationStatus.Name(instance.status))
            if instance.lives:
                unseen = told_by(message.event for message in stored.inbox)
                unseen.sort(key=lambda told: told[0] != "start")  # the start is always seen first
                same(f"what {name} has not seen", unseen, instance.told[instance.seen :])
                due = sorted((told_by([message.event])[0], message.due) for message in stored.timers.values())
                waits = [(e[4], e[0]) for e in self._schedule if e[2:4] == (name, instance.run)]
                same(f"what {name} waits for", due, sorted(waits))
                tasks |= {(name, stored.execution, n): given for n, given in instance.tasks.items()}
            elif instance.status != FAILED:
                same(f"{name}'s output", stored.output or "", instance.output)
        given_out = {
            (a.request.orchestrationInstance.instanceId, f"{key:x}", a.request.taskId): a.request.input.value
            for key, activities in hub.work._activities.items()
            for a in activities.values()
            if (a.request.orchestrationInstance.instanceId) in live
            and live[a.request.orchestrationInstance.instanceId].key == key
        }
        same("the activities", given_out, tasks)
        delayed = [m.target + (_tag(m.event) or "") for m in hub._scheduled.values() if m.target.startswith("@")]
        expected = [entry[2] + entry[4].tag for entry in self._schedule if isinstance(entry[4], Operation)]
        same("the delayed signals", sorted(delayed), sorted(expected))
        planned = [number for _, number, what in hub._schedule if number in hub._scheduled]
        same("what will be delivered", sorted(planned), sorted(hub._scheduled))
        for entity in hub.entities._busy.values():
            expect(not entity.lock or entity.owner in live, f"{entity.id} is locked by {entity.owner}, which has ended")
        for entity, thing in self.things.items():
            self._check_entity(hub, entity, thing)

    def _check_entity(self, hub: Hub, entity: str, thing: Thing) -> None:
        found = hub.entities.get(pb.GetEntityRequest(instanceId=entity, includeState=True))
        state = json.loads(found.entity.serializedState.value) if found.entity.serializedState.value else None
        same(f"the state of {entity}", state, thing.state)
        busy = hub.entities._busy.get(entity)
        operations = [told for message in (busy.inbox if busy else ()) if (told := _tag(message.event)) is not None]
        same(f"what waits for {entity}", operations, [operation.tag for operation in thing.queue])
        if thing.state is None:
            thing.modified = 0  # a removed entity may come back with any time
            return
        modified = micros(found.entity.lastModifiedTime)
        if thing.modified < 0:
            expect(modified > -thing.modified, f"{entity} has changed, but its time has not increased")
        elif thing.modified:
            same(f"the time at which {entity} changed", modified, thing.modified)
        thing.modified = modified


_CARRIED = ("event", "executionSuspended", "executionResumed")


def _tag(event: pb.HistoryEvent) -> str | None:
    """The tag of an operation; None if the event requests a lock."""
    if event.HasField("entityLockRequested"):
        return None
    operation = (
        event.entityOperationCalled if event.HasField("entityOperationCalled") else event.entityOperationSignaled
    )
    return json.loads(operation.input.value)


def _fits(method: str, response: Any, item: pb.WorkItem) -> bool:
    """Whether a completion is for this item."""
    match method, item.WhichOneof("request"):
        case "CompleteOrchestratorTask", "orchestratorRequest":
            return response.instanceId == item.orchestratorRequest.instanceId
        case "CompleteActivityTask", "activityRequest":
            of = item.activityRequest
            return (response.instanceId, response.taskId) == (of.orchestrationInstance.instanceId, of.taskId)
        case "CompleteEntityTask", "entityRequest":
            return bool(response.results) or response.HasField("failureDetails")
        case _:
            return False


def _subject(item: pb.WorkItem) -> tuple[str, ...]:
    """What two workers must not have at the same time."""
    match item.WhichOneof("request"):
        case "orchestratorRequest":
            return ("step", item.orchestratorRequest.instanceId, item.orchestratorRequest.executionId.value)
        case "activityRequest":
            request = item.activityRequest
            of = request.orchestrationInstance
            return ("activity", of.instanceId, of.executionId.value, str(request.taskId))
        case _:
            return ("batch", item.entityRequest.instanceId)
