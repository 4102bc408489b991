"""The gRPC service: stores what a call changes, and only then answers it, hands out work and wakes waiting clients."""

import queue
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, NoReturn

import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as stubs
import grpc
from google.protobuf.empty_pb2 import Empty

from local_services.scheduler.entities import metadata
from local_services.scheduler.hub import REMEMBER_ANSWERS, Hub, request_id_of
from local_services.scheduler.limits import RECEIVE_LIMIT, check_text
from local_services.scheduler.orchestrations import chunks_of, state
from local_services.scheduler.records import FINISHED, PENDING, Orchestration, Refused
from local_services.scheduler.store import StateUnusable, Store
from local_services.service import HOST, listening_socket

PING_SECONDS = 15.0
"""After so long without work a stream is sent a ping, as DTS does: a worker that hears nothing for long reconnects."""

CALLS = (
    "StartInstance", "RaiseEvent", "TerminateInstance", "SuspendInstance", "ResumeInstance", "RestartInstance",
    "RewindInstance", "SignalEntity", "CleanEntityStorage", "CompleteOrchestratorTask", "CompleteActivityTask",
    "CompleteEntityTask", "AbandonTaskOrchestratorWorkItem", "AbandonTaskActivityWorkItem", "AbandonTaskEntityWorkItem",
)  # fmt: skip
READS = ("GetInstance", "GetEntity")

CHUNK_BYTES = 1024 * 1024  # of a history, sent in parts

KEEPALIVE_OPTIONS = [
    # A peer that does not answer a ping within this time is gone, or frozen: what it has goes to others.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # And it may ping as often itself, without being sent away for it.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


@dataclass(eq=False)
class _Stream:
    """A worker's stream: what it asked for, and the work items on their way. None ends it."""

    hub: str
    request: pb.GetWorkItemsRequest
    items: "queue.SimpleQueue[pb.WorkItem | None]" = field(default_factory=queue.SimpleQueue)


@dataclass(eq=False)
class _Wait:
    """A client that waits for an orchestration to be as it wants it."""

    is_met: Callable[[Orchestration], bool]
    event: threading.Event = field(default_factory=threading.Event)
    result: Orchestration | None = None


class Scheduler:
    """All task hubs on one store. Its methods are the RPCs of the Durable Task Scheduler."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._ids = count(max(store.last_id(), _now()) + 1)
        self._nonce = uuid.uuid4().hex[:12]
        self._hubs: dict[str, Hub] = {}
        self._streams: dict[int, _Stream] = {}
        self._waits: dict[tuple[str, str], list[_Wait]] = {}
        self._trouble = ""  # why the last change could not be stored
        self._retry_at = 0.0
        self._stopped = False
        self._clock = threading.Condition(self._lock)
        self._wakes_at: int | None = None
        for name in store.busy_hubs():
            self._hub(name)
        threading.Thread(target=self._run_clock, daemon=True).start()

    # Calls -----------------------------------------------------------------------------------------------------

    def call(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """Do a call that a hub answers by itself."""
        hub, header = _addressed(context)
        with _refusing(context):
            return self._do(hub, lambda hub: hub.call(method, request, _now(), request_id_of(method, request, header)))

    def read(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """Do a call that changes nothing."""
        hub, _ = _addressed(context)
        with _refusing(context), self._lock:
            return self._hub(hub).call(method, request, 0)

    def _do(self, name: str, work: Callable[[Hub], Any]) -> Any:
        """Have a hub do something, store what it changes, and let the world know.

        Raises:
            Refused: by the hub.
            StateUnusable: it could not be stored. Nothing has happened then.
        """
        with self._lock:
            self._require_storage()
            hub = self._hub(name)
            answer, refused = None, None
            try:
                try:
                    answer = work(hub)
                except Refused as problem:
                    refused = problem
                items = hub.hand_out()
                changes = hub.take_changes()
                if changes:
                    self._store.commit(name, changes)
            except Exception as error:
                self._start_over(name, error)
                raise
            for number, item in items:
                self._streams[number].items.put(item)
            for orchestration in changes.orchestrations.values():
                self._wake(name, orchestration)
            due = hub.next_due()
            if due is not None and (self._wakes_at is None or due < self._wakes_at):
                self._clock.notify()
            if refused:
                raise refused
            return answer

    def _try(self, hub: str, work: Callable[[Hub], Any]) -> None:
        """Do something that nobody waits for. What goes wrong is said on stderr, and the hub is as it is stored."""
        with suppress(Exception):
            self._do(hub, work)

    def _require_storage(self) -> None:
        """While nothing can be stored, nothing is done: no worker shall work for nothing. Raises StateUnusable."""
        if not self._trouble:
            return
        if time.monotonic() < self._retry_at:
            raise StateUnusable(self._trouble)
        self._retry_at = time.monotonic() + 1
        self._store.try_to_write()
        self._trouble = ""
        print("The state can be stored again.", file=sys.stderr, flush=True)

    def _hub(self, name: str) -> Hub:
        """The hub of this name; it comes into being when it is first used."""
        if name not in self._hubs:
            check_text("task hub's name", name)
            self._hubs[name] = Hub(self._store.of(name), self._ids, self._nonce)
            self._hubs[name].load(_now())
        return self._hubs[name]

    def _start_over(self, name: str, error: Exception) -> None:
        """Forget what a hub has in memory: it may differ from what is stored, and what is stored counts."""
        if isinstance(error, StateUnusable):
            if not self._trouble:
                print(f"Not stored: {error}", file=sys.stderr, flush=True)
            self._trouble, self._retry_at = str(error), time.monotonic() + 1
        else:
            traceback.print_exception(error)
        self._hubs.pop(name, None)
        self._nonce = uuid.uuid4().hex[:12]
        with suppress(StateUnusable, Refused):
            hub = self._hub(name)
            for number, stream in self._streams.items():
                if stream.hub == name:
                    hub.connect(number, stream.request, _now())
        self._clock.notify()

    def _run_clock(self) -> None:
        """Deliver what is due, in a thread of its own."""
        tidy_at = 0.0
        with self._lock:
            while not self._stopped:
                now = _now()
                for name, hub in list(self._hubs.items()):
                    if self._trouble or ((due := hub.next_due()) is not None and due <= now):
                        self._try(name, lambda hub, now=now: hub.tick(now))
                if time.monotonic() > tidy_at:
                    tidy_at = time.monotonic() + 600
                    with suppress(StateUnusable):
                        self._store.forget_answers(now - REMEMBER_ANSWERS)
                dues = [due for hub in self._hubs.values() if (due := hub.next_due()) is not None]
                self._wakes_at = min(dues, default=None)
                # In slices: the clock may be set meanwhile.
                seconds = 60.0 if self._wakes_at is None else (self._wakes_at - _now()) / 1_000_000
                self._clock.wait(min(60.0, max(1.0 if self._trouble else 0.0, seconds)))

    # Waiting ---------------------------------------------------------------------------------------------------

    def wait(
        self, is_met: Callable[[Orchestration], bool], request: pb.GetInstanceRequest, context: grpc.ServicerContext
    ) -> pb.GetInstanceResponse:
        """Answer when the orchestration is as wanted, or at once if there is none."""
        hub, _ = _addressed(context)
        with _refusing(context):
            key, wait = (hub, request.instanceId), _Wait(is_met)
            with self._lock:
                orchestration = self._hub(hub).orchestrations.find(request.instanceId)
                if orchestration is None:
                    return pb.GetInstanceResponse(exists=False)
                if is_met(orchestration):
                    return _found(orchestration, request)
                self._waits.setdefault(key, []).append(wait)
            context.add_callback(wait.event.set)  # the caller is gone, or its time is over
            wait.event.wait()
            with self._lock:
                if waits := self._waits.get(key):
                    if wait in waits:
                        waits.remove(wait)
                    if not waits:
                        del self._waits[key]
            if wait.result is not None:
                return _found(wait.result, request)
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"Orchestration '{request.instanceId}' is not there yet.")

    def _wake(self, hub: str, orchestration: Orchestration) -> None:
        for wait in self._waits.get((hub, orchestration.id), ()):
            if wait.result is None and wait.is_met(orchestration):
                wait.result = orchestration
                wait.event.set()

    # Work streams ----------------------------------------------------------------------------------------------

    def work_items(self, request: pb.GetWorkItemsRequest, context: grpc.ServicerContext) -> Iterator[pb.WorkItem]:
        """Stream work to a worker; when the stream ends, what it has left undone goes to another."""
        name, _ = _addressed(context)
        stream = _Stream(name, request)
        if not context.add_callback(lambda: stream.items.put(None)):
            return
        with self._lock:
            number = next(self._ids)
            self._streams[number] = stream
        try:
            with _refusing(context):
                self._do(name, lambda hub: hub.connect(number, request, _now()))
            while True:
                try:
                    item = stream.items.get(timeout=PING_SECONDS)
                except queue.Empty:
                    item = pb.WorkItem(healthPing=pb.HealthPing())
                if item is None:
                    return
                yield item
        finally:
            with self._lock:
                del self._streams[number]
                if not self._stopped:
                    self._try(name, lambda hub: hub.disconnect(number, _now()))

    # Queries ---------------------------------------------------------------------------------------------------

    def query_instances(
        self, request: pb.QueryInstancesRequest, context: grpc.ServicerContext
    ) -> pb.QueryInstancesResponse:
        """A page of orchestrations."""
        hub, _ = _addressed(context)
        with _refusing(context):
            found, token = self._store.orchestrations(hub, request.query)
        response = pb.QueryInstancesResponse(
            orchestrationState=[state(orchestration, request.query.fetchInputsAndOutputs) for orchestration in found]
        )
        if token:
            response.continuationToken.value = token
        return response

    def list_ids(self, request: pb.ListInstanceIdsRequest, context: grpc.ServicerContext) -> pb.ListInstanceIdsResponse:
        """A page of the ids of finished orchestrations."""
        hub, _ = _addressed(context)
        with _refusing(context):
            ids, token = self._store.finished_ids(hub, request)
        response = pb.ListInstanceIdsResponse(instanceIds=ids)
        if token:
            response.lastInstanceKey.value = token
        return response

    def query_entities(
        self, request: pb.QueryEntitiesRequest, context: grpc.ServicerContext
    ) -> pb.QueryEntitiesResponse:
        """A page of entities."""
        hub, _ = _addressed(context)
        with _refusing(context):
            found, token = self._store.entities(hub, request.query)
        response = pb.QueryEntitiesResponse()
        for entity, waiting in found:
            added = response.entities.add()
            added.CopyFrom(metadata(entity, request.query.includeState))
            added.backlogQueueSize = waiting
        if token:
            response.continuationToken.value = token
        return response

    def history(
        self, request: pb.StreamInstanceHistoryRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.HistoryChunk]:
        """An orchestration's history, in parts."""
        hub, _ = _addressed(context)
        with _refusing(context):
            found = self._store.history(hub, request.instanceId)
        if found is None or (request.executionId.value and request.executionId.value != found[0]):
            text = f"There is no orchestration with instance id '{request.instanceId}', or not of this execution."
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        yield from chunks_of(found[1], CHUNK_BYTES)

    def purge(self, request: pb.PurgeInstancesRequest, context: grpc.ServicerContext) -> pb.PurgeInstancesResponse:
        """Purge orchestrations; of many a few at a time, so that other calls get their turn."""
        purge_filter = request.purgeInstanceFilter
        seconds = purge_filter.timeout.ToMicroseconds() / 1_000_000 if purge_filter.HasField("timeout") else 1e9
        until, deleted = time.monotonic() + seconds, 0
        while True:
            response = self.call("PurgeInstances", request, context)
            deleted += response.deletedInstanceCount
            if response.isComplete.value or time.monotonic() > until:
                response.deletedInstanceCount = deleted
                return response

    def stop(self) -> None:
        """End all streams and waits, and close the store."""
        with self._lock:
            self._stopped = True
            self._clock.notify()
            self._store.close()


def _found(orchestration: Orchestration, request: pb.GetInstanceRequest) -> pb.GetInstanceResponse:
    return pb.GetInstanceResponse(exists=True, orchestrationState=state(orchestration, request.getInputsAndOutputs))


def _now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def _addressed(context: grpc.ServicerContext) -> tuple[str, str]:
    """The task hub that a call is for, and the id by which the client would repeat it."""
    hub = request_id = ""
    for name, value in context.invocation_metadata():
        if name == "taskhub":
            hub = str(value)
        elif name == "x-request-id":
            request_id = str(value)
    if not hub:
        context.abort(
            grpc.StatusCode.INVALID_ARGUMENT,
            "The call names no task hub: send its name as 'taskhub' metadata (the samples: set TASKHUB).",
        )
    return hub, request_id[:100]


@contextmanager
def _refusing(context: grpc.ServicerContext) -> Iterator[None]:
    """Tell the caller what is wrong."""
    try:
        yield
    except Refused as refused:
        context.abort(refused.code, str(refused))
    except StateUnusable as problem:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(problem))


def _unimplemented(method: str) -> Callable[[Any, grpc.ServicerContext], NoReturn]:
    def refuse(_: Any, context: grpc.ServicerContext) -> NoReturn:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, f"The local scheduler does not implement {method}.")

    return refuse


def _methods(scheduler: Scheduler) -> SimpleNamespace:
    """All RPCs by name."""

    def through(do: Callable[..., Any], method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        return lambda request, context: do(method, request, context)

    def waiting(is_met: Callable[[Orchestration], bool]) -> Callable[[Any, grpc.ServicerContext], Any]:
        return lambda request, context: scheduler.wait(is_met, request, context)

    service = pb.DESCRIPTOR.services_by_name["TaskHubSidecarService"]
    methods = {method.name: _unimplemented(method.name) for method in service.methods}
    methods |= {method: through(scheduler.call, method) for method in CALLS}
    methods |= {method: through(scheduler.read, method) for method in READS}
    methods |= {
        "Hello": lambda _, __: Empty(),
        "CreateTaskHub": lambda _, __: pb.CreateTaskHubResponse(),  # a hub comes into being when it is first used
        "WaitForInstanceStart": waiting(lambda orchestration: orchestration.status != PENDING),
        "WaitForInstanceCompletion": waiting(lambda orchestration: orchestration.status in FINISHED),
        "GetWorkItems": scheduler.work_items,
        "QueryInstances": scheduler.query_instances,
        "ListInstanceIds": scheduler.list_ids,
        "QueryEntities": scheduler.query_entities,
        "StreamInstanceHistory": scheduler.history,
        "PurgeInstances": scheduler.purge,
    }
    return SimpleNamespace(**methods)


def start_server(scheduler: Scheduler, port: int) -> tuple[grpc.Server, str]:
    """Serve on a port of this machine (0: a free one); returns the server and its address."""
    server = grpc.server(
        # Every worker stream and every waiting client holds a thread, which costs little while it waits.
        futures.ThreadPoolExecutor(max_workers=10_000),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", RECEIVE_LIMIT), *KEEPALIVE_OPTIONS],
    )
    stubs.add_TaskHubSidecarServiceServicer_to_server(_methods(scheduler), server)  # pyright: ignore[reportArgumentType]
    if port:
        listening_socket(port).close()  # says so in one line if the port is taken; gRPC would in many
    port = server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    return server, f"http://{HOST}:{port}"
