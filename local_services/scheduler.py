"""The local scheduler: speaks the gRPC service of the Durable Task Scheduler (DTS) on this machine.

It is the backend that the Durable Task SDK ships for tests, with what a scheduler in earnest does beyond it: work of
a worker that died is given out again, task hubs are apart, waits last as long as they must, the history tells the
time, and DTS's size limits hold. State lives in memory, as it does in the DTS emulator, and ends with the process.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as stubs
import grpc
from durabletask.internal.helpers import (
    convert_to_entity_batch_request,
    new_timer_created_event,
    new_timer_fired_event,
)
from durabletask.testing.in_memory_backend import (
    ActivityWorkItem,
    EntityState,
    InMemoryOrchestrationBackend,
    OrchestrationInstance,
)

from local_services.service import HOST, listening_socket, report_ready, service_arguments, stop_order

PAYLOAD_LIMIT = 1024 * 1024
"""Bytes: DTS takes no more in one input, output, event, custom status or entity state (its service limits)."""

MESSAGE_LIMIT = 4 * 1024 * 1024
"""Bytes: a gRPC client with default options, as the SDK's workers are, receives no larger message."""

PING_SECONDS = 20.0
"""After so long without work a stream is sent a ping, as DTS does: a worker that hears nothing for 120 s reconnects."""

_SLICE_SECONDS = 5.0  # how often a waiting call looks whether its instance and its caller are still there
_caller = threading.local()  # the gRPC context of the call that the current thread serves


class _NothingToSend(BaseException):
    """Leaves the SDK's loop that looks for work; it catches every Exception."""


class _Bell(threading.Event):
    """Wakes every worker stream when work arrives.

    The SDK's event is cleared by the first stream that wakes, and the others sleep on for a tenth of a second. Here
    each thread remembers the last ring it heard, and sleeps until the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rung = threading.Condition()
        self._rings = 0
        self._heard = threading.local()

    def set(self) -> None:
        with self._rung:
            self._rings += 1
            self._rung.notify_all()

    def clear(self) -> None:
        self._heard.rings = self._rings

    def wait(self, timeout: float | None = None) -> bool:
        """Until the next ring, or ten times as long as the SDK's backend looks: an idle stream takes no CPU."""
        if time.monotonic() - _caller.sent_at > PING_SECONDS:
            raise _NothingToSend
        with self._rung:
            patience = 10 * timeout if timeout else None
            return self._rung.wait_for(lambda: self._rings != getattr(self._heard, "rings", -1), patience)


@dataclass(frozen=True)
class _Delivery:
    """A work item in the hands of a worker, under a token of its own."""

    stream: grpc.ServicerContext
    item: pb.WorkItem
    token: str  # the backend's own, which it may use for a second delivery too
    instance: OrchestrationInstance | None


class _Entities(dict[str, EntityState]):
    """A hub's entities. The SDK's backend looks for the one of a work item's token among them all; this spares it."""

    wanted: str | None = None  # the one to be found, while the hub is locked

    def values(self) -> Any:
        return super().values() if self.wanted is None else [self[self.wanted]]

    @contextmanager
    def only(self, entity_id: str) -> Iterator[None]:
        """Have a search find this entity alone, if it exists."""
        self.wanted = entity_id
        try:
            yield
        finally:
            self.wanted = None


class TaskHub(InMemoryOrchestrationBackend):
    """One task hub: its orchestrations, its entities, and the work that its workers have in hand."""

    def __init__(self) -> None:
        super().__init__(max_history_size=10**9)  # no bound of its own: what exceeds it would hang, not fail
        self._work_available = _Bell()
        self._entities = self._all_entities = _Entities()
        self._deliveries: dict[str, _Delivery] = {}

    # Work is given out again when the stream of the worker that has it ends ------------------------------------

    def GetWorkItems(self, request: pb.GetWorkItemsRequest, context: grpc.ServicerContext) -> Iterator[pb.WorkItem]:
        """Stream work to a worker; when the stream ends, what it left undone goes to another."""
        context.add_callback(self._work_available.set)  # wakes the loop below, so that it sees its stream has ended
        _caller.sent_at = time.monotonic()
        try:
            while context.is_active() and not self._shutdown_event.is_set():
                try:
                    for item in super().GetWorkItems(request, context):
                        if self._deliver(item, context):
                            yield item
                            _caller.sent_at = time.monotonic()
                except _NothingToSend:
                    yield pb.WorkItem(healthPing=pb.HealthPing())
                    _caller.sent_at = time.monotonic()
        finally:
            with self._lock:
                for token in [t for t, delivery in self._deliveries.items() if delivery.stream is context]:
                    self._give_back(token)

    def _deliver(self, item: pb.WorkItem, stream: grpc.ServicerContext) -> bool:
        """Note who has the work, under a new token; fail it, and say False, if no worker could receive it."""
        if (size := item.ByteSize()) > MESSAGE_LIMIT:
            self._fail(
                item, f"Its history and inputs take {size:,} bytes; a worker receives {MESSAGE_LIMIT:,} at most."
            )
            return False
        instance = self._instances.get(item.activityRequest.orchestrationInstance.instanceId)
        delivery = _Delivery(stream, item, item.completionToken, instance)
        item.completionToken = uuid.uuid4().hex
        with self._lock:
            self._deliveries[item.completionToken] = delivery
        return True

    def _give_back(self, token: str) -> None:
        """Queue a delivered work item again. A late completion finds its token gone, and does not count."""
        delivery = self._deliveries.pop(token, None)
        if delivery is None:
            return
        context, token = delivery.stream, delivery.token
        match delivery.item.WhichOneof("request"):
            case "orchestratorRequest":
                orchestration = pb.AbandonOrchestrationTaskRequest(completionToken=token)
                super().AbandonTaskOrchestratorWorkItem(orchestration, context)
            case "activityRequest":
                activity = delivery.item.activityRequest
                # The SDK's method for this does nothing.
                self._activity_queue.appendleft(
                    ActivityWorkItem(
                        instance_id=activity.orchestrationInstance.instanceId,
                        name=activity.name,
                        task_id=activity.taskId,
                        input=activity.input.value or None,
                        completion_token=int(token),
                    )
                )
            case _:
                with self._all_entities.only(delivery.item.entityRequestV2.instanceId):
                    super().AbandonTaskEntityWorkItem(pb.AbandonEntityTaskRequest(completionToken=token), context)
        self._work_available.set()

    def AbandonTaskOrchestratorWorkItem(
        self, request: pb.AbandonOrchestrationTaskRequest, context: grpc.ServicerContext
    ) -> pb.AbandonOrchestrationTaskResponse:
        """Take back work that a worker declines."""
        with self._lock:
            self._give_back(request.completionToken)
        return pb.AbandonOrchestrationTaskResponse()

    def AbandonTaskActivityWorkItem(
        self, request: pb.AbandonActivityTaskRequest, context: grpc.ServicerContext
    ) -> pb.AbandonActivityTaskResponse:
        """Take back work that a worker declines."""
        with self._lock:
            self._give_back(request.completionToken)
        return pb.AbandonActivityTaskResponse()

    def AbandonTaskEntityWorkItem(
        self, request: pb.AbandonEntityTaskRequest, context: grpc.ServicerContext
    ) -> pb.AbandonEntityTaskResponse:
        """Take back work that a worker declines."""
        with self._lock:
            self._give_back(request.completionToken)
        return pb.AbandonEntityTaskResponse()

    # A completion counts once, and fails its instance if it is too large -----------------------------------------

    def CompleteOrchestratorTask(
        self, request: pb.OrchestratorResponse, context: grpc.ServicerContext
    ) -> pb.CompleteTaskResponse:
        """Apply the actions of an orchestrator's step, unless the step was given to another worker."""
        with self._lock:
            delivery = self._deliveries.pop(request.completionToken, None)
            if delivery is None:
                return pb.CompleteTaskResponse()
            request.completionToken = delivery.token
            if problem := _too_large(_payloads(request)):
                _make_failure(request, problem)
            instance = self._instances.get(request.instanceId)
            response = super().CompleteOrchestratorTask(request, context)
            if instance:
                _stamp(instance.history)
            self._work_available.set()  # what arrived during the step was passed over, and is queued without a ring
            return response

    def CompleteActivityTask(
        self, request: pb.ActivityResponse, context: grpc.ServicerContext
    ) -> pb.CompleteTaskResponse:
        """Record an activity's result, unless the activity was given to another worker."""
        with self._lock:
            delivery = self._deliveries.pop(request.completionToken, None)
            if delivery is None or delivery.instance is not self._instances.get(request.instanceId):
                return pb.CompleteTaskResponse()
            output = f"output of activity '{delivery.item.activityRequest.name}'"
            if problem := _too_large([(output, request.result.value)]):
                request.ClearField("result")
                request.failureDetails.CopyFrom(_failure(problem))
            return super().CompleteActivityTask(request, context)

    def CompleteEntityTask(
        self, request: pb.EntityBatchResult, context: grpc.ServicerContext
    ) -> pb.CompleteTaskResponse:
        """Store an entity's state and deliver its results, unless the work was given to another worker."""
        with self._lock:
            delivery = self._deliveries.pop(request.completionToken, None)
            if delivery is None:
                return pb.CompleteTaskResponse()
            request.completionToken = delivery.token
            entity = delivery.item.entityRequestV2
            problem = _too_large([(f"state of entity '{entity.instanceId}'", request.entityState.value)])
            if not problem:
                problem = _too_large(
                    (f"result of entity '{entity.instanceId}'", result.success.result.value)
                    for result in request.results
                )
            if problem:
                request.CopyFrom(_failed_batch(entity, delivery.token, problem))
            with self._all_entities.only(entity.instanceId):
                response = super().CompleteEntityTask(request, context)
            self._work_available.set()  # as above, for operations that arrived during the batch
        if problem:  # a signalled entity has no caller to tell: the worker's log is where the reason can be seen
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        return response

    def _fail(self, item: pb.WorkItem, problem: str) -> None:
        """Complete an orchestration's or entity's work item as failed, without a worker."""
        context = _caller.context
        if item.HasField("orchestratorRequest"):
            request = pb.OrchestratorResponse(
                instanceId=item.orchestratorRequest.instanceId, completionToken=item.completionToken
            )
            _make_failure(request, problem)
            super().CompleteOrchestratorTask(request, context)
        else:
            batch = _failed_batch(item.entityRequestV2, item.completionToken, problem)
            super().CompleteEntityTask(batch, context)

    # Payloads of callers are limited too --------------------------------------------------------------------------

    def StartInstance(
        self, request: pb.CreateInstanceRequest, context: grpc.ServicerContext
    ) -> pb.CreateInstanceResponse:
        """Start an orchestration."""
        _refuse_if_too_large(context, f"input of orchestration '{request.name}'", request.input.value)
        return super().StartInstance(request, context)

    def RaiseEvent(self, request: pb.RaiseEventRequest, context: grpc.ServicerContext) -> pb.RaiseEventResponse:
        """Raise an external event."""
        _refuse_if_too_large(context, f"data of event '{request.name}'", request.input.value)
        return super().RaiseEvent(request, context)

    def SignalEntity(self, request: pb.SignalEntityRequest, context: grpc.ServicerContext) -> pb.SignalEntityResponse:
        """Queue an operation of an entity."""
        _refuse_if_too_large(context, f"input of operation '{request.name}'", request.input.value)
        return super().SignalEntity(request, context)

    def TerminateInstance(self, request: pb.TerminateRequest, context: grpc.ServicerContext) -> pb.TerminateResponse:
        """Terminate an orchestration."""
        _refuse_if_too_large(context, "output of the termination", request.output.value)
        return super().TerminateInstance(request, context)

    # Waiting and time ----------------------------------------------------------------------------------------------

    def _wait_for_state(
        self, instance_id: str, predicate: Callable[[OrchestrationInstance], bool], timeout: float | None
    ) -> OrchestrationInstance | None:
        """Wait as the SDK's backend does, but without a bound of its own, and no longer than there is a reason to."""
        context: grpc.ServicerContext | None = getattr(_caller, "context", None)  # none for a sub-orchestration
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while instance_id in self._instances and (context is None or context.is_active()):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if instance := super()._wait_for_state(instance_id, predicate, min(left, _SLICE_SECONDS)):
                return instance
        return None

    def _process_create_timer_action(self, instance: OrchestrationInstance, action: pb.OrchestratorAction) -> None:
        """Start a timer that fires for this very instance. The SDK's would fire for one restarted under its id too."""
        fire_at = action.createTimer.fireAt.ToDatetime(tzinfo=timezone.utc)
        instance.history.append(new_timer_created_event(action.id, fire_at))

        def fire() -> None:
            with self._lock:
                if self._instances.get(instance.instance_id) is instance and instance.completed_at is None:
                    instance.pending_events.append(new_timer_fired_event(action.id, fire_at))
                    self._enqueue_orchestration(instance.instance_id)

        timer = threading.Timer(max(0.0, (fire_at - datetime.now(timezone.utc)).total_seconds()), fire)
        timer.daemon = True
        timer.start()

    def _enqueue_orchestration(self, instance_id: str) -> None:
        # Every event of an instance comes through here just after it was added: the moment to note its time.
        if instance := self._instances.get(instance_id):
            _stamp(instance.pending_events)
        super()._enqueue_orchestration(instance_id)


def _stamp(events: list[pb.HistoryEvent]) -> None:
    """Give the newest events, which the SDK's backend leaves at 1970, the present time."""
    for event in reversed(events):
        if event.timestamp.seconds:
            return
        event.timestamp.GetCurrentTime()


def _payloads(response: pb.OrchestratorResponse) -> Iterator[tuple[str, str]]:
    """All that a step of an orchestrator wants stored: what it is, and its text."""
    yield "custom status", response.customStatus.value
    for action in response.actions:
        # A field that is not set reads as the empty string.
        activity, child, message = action.scheduleTask, action.createSubOrchestration, action.sendEntityMessage
        yield "output", action.completeOrchestration.result.value
        yield f"input of activity '{activity.name}'", activity.input.value
        yield f"input of sub-orchestration '{child.name}'", child.input.value
        yield f"data of event '{action.sendEvent.name}'", action.sendEvent.data.value
        for operation in (message.entityOperationCalled, message.entityOperationSignaled):
            yield f"input of operation '{operation.operation}'", operation.input.value


def _too_large(payloads: Iterable[tuple[str, str]]) -> str | None:
    """What is wrong with the first payload over DTS's limit, if there is one."""
    for what, text in payloads:
        if len(text) > PAYLOAD_LIMIT // 4 and (size := len(text.encode())) > PAYLOAD_LIMIT:
            return f"The {what} has {size:,} bytes; the scheduler stores {PAYLOAD_LIMIT:,} (1 MB) at most."
    return None


def _refuse_if_too_large(context: grpc.ServicerContext, what: str, text: str) -> None:
    if problem := _too_large([(what, text)]):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)


def _failure(problem: str) -> pb.TaskFailureDetails:
    return pb.TaskFailureDetails(errorType="PayloadTooLarge", errorMessage=problem, isNonRetriable=True)


def _make_failure(response: pb.OrchestratorResponse, problem: str) -> None:
    """Replace what an orchestrator's step wants by the failure of its instance."""
    del response.actions[:]
    response.ClearField("customStatus")
    action = response.actions.add().completeOrchestration
    action.orchestrationStatus = pb.ORCHESTRATION_STATUS_FAILED
    action.failureDetails.CopyFrom(_failure(problem))


def _failed_batch(request: pb.EntityRequest, token: str, problem: str) -> pb.EntityBatchResult:
    """The result of a batch of entity operations that all failed: the state stays as it was."""
    _, operations = convert_to_entity_batch_request(request)
    failed = pb.OperationResult(failure=pb.OperationResultFailure(failureDetails=_failure(problem)))
    return pb.EntityBatchResult(
        results=[failed] * len(operations),
        entityState=request.entityState if request.HasField("entityState") else None,
        completionToken=token,
        operationInfos=operations,
    )


class _HubRouter:
    """Hands each call to the task hub that its metadata names; a hub comes into being on first use."""

    def __init__(self) -> None:
        self._hubs: dict[str, TaskHub] = {}
        self._lock = threading.Lock()

    def __getattr__(self, method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            _caller.context = context
            return getattr(self._hub(context), method)(request, context)

        return call

    def _hub(self, context: grpc.ServicerContext) -> TaskHub:
        name = str(dict(context.invocation_metadata()).get("taskhub", ""))
        if not name:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "The call names no task hub: send its name as 'taskhub' metadata (the samples: set TASKHUB).",
            )
        with self._lock:
            if name not in self._hubs:
                self._hubs[name] = TaskHub()
            return self._hubs[name]


def start_server(port: int) -> tuple[grpc.Server, str]:
    """Start the scheduler on a port of this machine (0: a free one); returns the server and its address."""
    server = grpc.server(
        # Every worker stream and every waiting client holds a thread, which costs little while it waits.
        futures.ThreadPoolExecutor(max_workers=10_000),
        # Whatever a worker sends arrives, so that what is too large is answered and not left hanging.
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
    )
    stubs.add_TaskHubSidecarServiceServicer_to_server(_HubRouter(), server)
    if port:
        listening_socket(port).close()  # says so in one line if the port is taken; gRPC would in many
    port = server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    return server, f"http://{HOST}:{port}"


def main() -> None:
    arguments = service_arguments(__doc__, default_port=8080).parse_args()
    stopped = stop_order(arguments.supervised)
    server, address = start_server(arguments.port)
    report_ready("scheduler", address)
    stopped.wait()
    server.stop(grace=0)
    os._exit(0)  # threads that still wait for an orchestration would hold the process; there is nothing to save


if __name__ == "__main__":
    main()
