"""A task hub without processes or sockets: with a store, and with a clock and workers that the test controls."""

import uuid
from itertools import count
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
from google.protobuf.wrappers_pb2 import StringValue

from local_services.scheduler.hub import Hub
from local_services.scheduler.records import COMPLETED, timestamp
from local_services.scheduler.store import Store

SECOND = 1_000_000  # microseconds
BEGINNING = 1_800_000_000 * SECOND


class PlayedWorker:
    """A worker's stream: the work items that the hub has sent it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.items: list[pb.WorkItem] = []

    def take(self) -> pb.WorkItem:
        """The next work item; there must be one."""
        assert self.items, "the hub has not sent anything to this worker"
        return self.items.pop(0)


class TaskHub:
    """A hub; after each call its changes are stored, like in service.py.

    Args:
        path: the state file; if it is empty, the state is in memory, and survives `restart` too.
    """

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.now = BEGINNING
        self.workers: dict[int, PlayedWorker] = {}
        self._numbers = count(1)
        self.store = Store(path)
        self._load()

    def _load(self) -> None:
        ids = count(max(self.store.last_id(), self.now) + 1)
        self.hub = Hub(self.store.of("hub"), ids, uuid.uuid4().hex[:8])
        self.hub.load(self.now)

    def restart(self) -> None:
        """Kill the scheduler, and start another: streams end, only what is stored is left."""
        if self.path:
            self.store.close()
            self.store = Store(self.path)
        self.workers.clear()
        self._load()

    # Calls -----------------------------------------------------------------------------------------------------

    def call(self, method: str, request: Any, request_id: str = "") -> Any:
        """Make a gRPC call. Raises Refused."""
        try:
            return self.hub.call(method, request, self.now, request_id)
        finally:
            self._let_know()

    def start(self, name: str, instance_id: str = "", **fields: Any) -> str:
        """Start an orchestration; returns its instance id."""
        if "input" in fields:
            fields["input"] = StringValue(value=fields["input"])
        if "version" in fields:
            fields["version"] = StringValue(value=fields["version"])
        request = pb.CreateInstanceRequest(instanceId=instance_id, name=name, **fields)
        return self.call("StartInstance", request).instanceId

    def state(self, instance_id: str) -> pb.OrchestrationState | None:
        """An orchestration's state; None if there is no such orchestration."""
        request = pb.GetInstanceRequest(instanceId=instance_id, getInputsAndOutputs=True)
        response = self.hub.orchestrations.get(request)
        return response.orchestrationState if response.exists else None

    def status(self, instance_id: str) -> str:
        """The short name of an orchestration's status."""
        state = self.state(instance_id)
        assert state, f"there is no orchestration {instance_id}"
        return pb.OrchestrationStatus.Name(state.orchestrationStatus).removeprefix("ORCHESTRATION_STATUS_")

    def failure(self, instance_id: str) -> str:
        """Why an orchestration has failed."""
        state = self.state(instance_id)
        assert state
        return state.failureDetails.errorMessage

    def history(self, instance_id: str) -> list[str]:
        """The kinds of events in an orchestration's history."""
        found = self.store.history("hub", instance_id)
        assert found
        return [event.WhichOneof("eventType") or "" for event in found[1]]

    def signal(self, entity_id: str, operation: str = "run", **fields: Any) -> None:
        """Signal an entity."""
        fields.setdefault("requestId", uuid.uuid4().hex)
        self.call("SignalEntity", pb.SignalEntityRequest(instanceId=entity_id, name=operation, **fields))

    def entity(self, entity_id: str) -> pb.EntityMetadata | None:
        """An entity with its state; None if there is none."""
        request = pb.GetEntityRequest(instanceId=entity_id, includeState=True)
        response = self.hub.entities.get(request)
        return response.entity if response.exists else None

    def event(self, instance_id: str, name: str, data: str = '"data"') -> None:
        """Raise an external event."""
        request = pb.RaiseEventRequest(instanceId=instance_id, name=name, input=StringValue(value=data))
        self.call("RaiseEvent", request)

    # Time ------------------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Let time pass; what becomes due meanwhile is done at its time."""
        until = self.now + round(seconds * SECOND)
        while (due := self.hub.next_due()) is not None and due <= until:
            self.now = max(self.now, due)
            self.hub.tick(self.now)
            self._let_know()
        self.now = until

    # Workers ---------------------------------------------------------------------------------------------------

    def connect(self, filters: pb.WorkItemFilters | None = None, **limits: Any) -> PlayedWorker:
        """Begin a worker's stream."""
        worker = PlayedWorker(next(self._numbers))
        self.workers[worker.number] = worker
        self.hub.connect(worker.number, pb.GetWorkItemsRequest(workItemFilters=filters, **limits), self.now)
        self._let_know()
        return worker

    def disconnect(self, worker: PlayedWorker) -> None:
        """End a worker's stream."""
        del self.workers[worker.number]
        self.hub.disconnect(worker.number, self.now)
        self._let_know()

    def complete(self, item: pb.WorkItem, *answers: pb.OrchestratorAction | str, **fields: Any) -> None:
        """Complete a work item: an orchestrator's step with actions, an activity with its result."""
        if item.HasField("orchestratorRequest"):
            response = pb.OrchestratorResponse(
                instanceId=item.orchestratorRequest.instanceId, completionToken=item.completionToken, **fields
            )
            response.actions.extend(answer for answer in answers if isinstance(answer, pb.OrchestratorAction))
            self.call("CompleteOrchestratorTask", response)
        else:
            request = item.activityRequest
            response = pb.ActivityResponse(
                instanceId=request.orchestrationInstance.instanceId,
                taskId=request.taskId,
                completionToken=item.completionToken,
                **fields,
            )
            if answers:
                response.result.value = str(answers[0])
            self.call("CompleteActivityTask", response)

    def complete_batch(self, item: pb.WorkItem, state: str | None, **fields: Any) -> None:
        """Complete a batch of an entity's operations: each returns its input."""
        result = pb.EntityBatchResult(completionToken=item.completionToken, **fields)
        if state is not None:
            result.entityState.value = state
        if not result.HasField("failureDetails"):
            for operation in item.entityRequest.operations:
                result.results.add().success.result.value = operation.input.value
        self.call("CompleteEntityTask", result)

    def abandon(self, item: pb.WorkItem) -> None:
        """Abandon a work item."""
        token = item.completionToken
        if item.HasField("orchestratorRequest"):
            self.call("AbandonTaskOrchestratorWorkItem", pb.AbandonOrchestrationTaskRequest(completionToken=token))
        elif item.HasField("activityRequest"):
            self.call("AbandonTaskActivityWorkItem", pb.AbandonActivityTaskRequest(completionToken=token))
        else:
            self.call("AbandonTaskEntityWorkItem", pb.AbandonEntityTaskRequest(completionToken=token))

    def _let_know(self) -> None:
        items = self.hub.hand_out()
        self.store.commit("hub", self.hub.take_changes())
        for number, item in items:
            self.workers[number].items.append(item)


# Actions of an orchestrator's step -------------------------------------------------------------------------------


def finish(output: str = '"done"', status: Any = COMPLETED, **fields: Any) -> pb.OrchestratorAction:
    """End the orchestration."""
    ending = pb.CompleteOrchestrationAction(orchestrationStatus=status, result=StringValue(value=output), **fields)
    return pb.OrchestratorAction(id=999, completeOrchestration=ending)


def call_activity(number: int, name: str = "activity", **fields: Any) -> pb.OrchestratorAction:
    """Call an activity."""
    return pb.OrchestratorAction(id=number, scheduleTask=pb.ScheduleTaskAction(name=name, **fields))


def call_child(number: int, name: str, instance_id: str = "", **fields: Any) -> pb.OrchestratorAction:
    """Call a sub-orchestration."""
    child = pb.CreateSubOrchestrationAction(name=name, instanceId=instance_id, **fields)
    return pb.OrchestratorAction(id=number, createSubOrchestration=child)


def create_timer(number: int, when: int) -> pb.OrchestratorAction:
    """Wait until that time, in microseconds since 1970."""
    return pb.OrchestratorAction(id=number, createTimer=pb.CreateTimerAction(fireAt=timestamp(when)))


def entity_message(number: int, **message: Any) -> pb.OrchestratorAction:
    """Call, signal, lock or unlock an entity."""
    return pb.OrchestratorAction(id=number, sendEntityMessage=pb.SendEntityMessageAction(**message))


def lock(number: int, section: str, *entities: str) -> pb.OrchestratorAction:
    """Lock entities."""
    return entity_message(
        number, entityLockRequested=pb.EntityLockRequestedEvent(criticalSectionId=section, lockSet=entities)
    )


def call_entity(number: int, entity_id: str, operation: str = "run", **fields: Any) -> pb.OrchestratorAction:
    """Call an entity's operation."""
    called = pb.EntityOperationCalledEvent(requestId=f"call-{number}", operation=operation, **fields)
    called.targetInstanceId.value = entity_id
    return entity_message(number, entityOperationCalled=called)


def new_events(item: pb.WorkItem) -> list[str]:
    """The kinds of a step's new events, without the one with which every step begins."""
    kinds = [event.WhichOneof("eventType") or "" for event in item.orchestratorRequest.newEvents]
    return [kind for kind in kinds if kind != "orchestratorStarted"]
