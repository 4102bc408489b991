"""The whole scheduler: stores a call's changes first, and then answers it, sends work, and answers waiting clients.

All of it runs on one thread, so nothing here needs a lock.
"""

import sys
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
from google.protobuf.empty_pb2 import Empty

from local_services.scheduler.entities import metadata
from local_services.scheduler.hub import REMEMBER_ANSWERS, Hub, request_id_of
from local_services.scheduler.limits import RECEIVE_LIMIT, check_text
from local_services.scheduler.orchestrations import state
from local_services.scheduler.records import FINISHED, PENDING, Orchestration, Refused
from local_services.scheduler.server import Call, Handler, Server
from local_services.scheduler.store import StateUnusable, Store
from local_services.service import HOST, StopOrder, listening_socket

PING_SECONDS = 15.0
"""A stream without work receives a ping this often, like in DTS: a worker that receives nothing for long reconnects."""

LOOK_SECONDS = 0.1
"""How long a read of a busy entity waits for a change."""

CHUNK_BYTES = 1024 * 1024  # a long history is sent in parts of this size
LONGEST_PAUSE = 0.2  # seconds until the loop checks the clock, signals, and whether to stop

OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", RECEIVE_LIMIT),
    # Otherwise gRPC cancels some calls at random when more than a thousand come at the same time.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    # A peer that does not answer a ping within this time is dead or frozen. Its work is redelivered.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # without it, the timeout is 60 seconds, despite the line above
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Peers may ping as often too. By default, gRPC would close their connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


@dataclass(eq=False, slots=True)
class _Stream:
    """A worker's stream."""

    hub: str
    request: pb.GetWorkItemsRequest
    call: Call
    ping_at: float


@dataclass(eq=False, slots=True)
class _Wait:
    """A client that waits until an orchestration has started or finished."""

    is_met: Callable[[Orchestration], bool]
    request: pb.GetInstanceRequest
    call: Call


@dataclass(eq=False, slots=True)
class _Look:
    """A client that reads a busy entity."""

    key: tuple[str, str]  # hub, entity
    request: pb.GetEntityRequest
    call: Call
    until: float


class Scheduler:
    """All task hubs of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ids = count(max(store.last_id(), _now()) + 1)
        self._hubs: dict[str, Hub] = {}
        self._streams: dict[int, _Stream] = {}
        self._waits: dict[tuple[str, str], list[_Wait]] = {}
        self._looks: dict[tuple[str, str], list[_Look]] = {}
        self._looking: deque[_Look] = deque()  # the same, in the order in which their time ends
        self._purges: deque[tuple[pb.PurgeInstancesRequest, Call, float, int]] = deque()
        self._trouble = ""  # why the last change could not be stored
        self._retry_at = 0.0
        self._next_tick = 0.0
        self._tidy_at = self._space_at = 0.0
        self._started_over: set[str] = set()  # hubs that were loaded again, and whose work must be sent out
        for name in store.busy_hubs():
            self._hub(name)

    def start(self, port: int) -> str:
        """Listen on a port of this machine (0: a free one); returns the address."""
        if port:
            listening_socket(port).close()  # prints one line if the port is in use; gRPC prints many
        self._server = Server("TaskHubSidecarService", self._methods(), OPTIONS)
        return f"http://{HOST}:{self._server.start(port)}"

    def run(self, stopped: StopOrder) -> None:
        """Serve until asked to stop, then close the store."""
        while not stopped.given:
            pause = min(self._next_tick - time.monotonic(), LONGEST_PAUSE)
            if pause <= 0:
                self._tick()
                pause = 0
            self._server.handle_next(time.time() + pause)
        self._store.close()

    def _methods(self) -> dict[str, tuple[Any, Handler]]:
        methods: dict[str, tuple[Any, Handler]] = {}
        own: dict[str, Handler] = {
            "Hello": lambda _, call: call.answer(Empty()),
            "CreateTaskHub": lambda _, call: call.answer(pb.CreateTaskHubResponse()),  # hubs are created on first use
            "GetInstance": self._get_instance,
            "GetEntity": self._get_entity,
            "WaitForInstanceStart": lambda request, call: self._wait(lambda o: o.status != PENDING, request, call),
            "WaitForInstanceCompletion": lambda request, call: self._wait(
                lambda o: o.status in FINISHED, request, call
            ),
            "GetWorkItems": self._get_work_items,
            "QueryInstances": self._query_instances,
            "ListInstanceIds": self._list_ids,
            "QueryEntities": self._query_entities,
            "StreamInstanceHistory": self._stream_history,
            "PurgeInstances": self._purge,
        }
        for method in pb.DESCRIPTOR.services_by_name["TaskHubSidecarService"].methods:
            if method.name in own:
                handler = own[method.name]
            elif method.name in Hub.CALLS:
                handler = self._through(method.name)
            else:
                handler = _unimplemented(method.name)
            request_type = Empty if method.name == "Hello" else getattr(pb, method.input_type.name)
            methods[method.name] = request_type, _refusing(handler)
        return methods

    # Calls that a hub answers ----------------------------------------------------------------------------------

    def _through(self, method: str) -> Handler:
        def handle(request: Any, call: Call) -> None:
            request_id = request_id_of(method, request, call.metadata.get("x-request-id", "")[:100])
            call.answer(self._do(_hub_of(call), lambda hub: hub.call(method, request, _now(), request_id)))

        return handle

    def _do(self, name: str, work: Callable[[Hub], Any]) -> Any:
        """Let a hub do something, store its changes, then send answers and work.

        Raises:
            Refused: by the hub.
            StateUnusable: it could not be stored. Nothing has changed then.
        """
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
            stream = self._streams[number]
            stream.call.send(item)
            stream.ping_at = time.monotonic() + PING_SECONDS
        if self._waits:
            for orchestration in changes.orchestrations.values():
                self._wake(name, orchestration)
        if self._looks:
            for entity_id in (*changes.entities, *changes.removed_entities):
                for look in self._looks.pop((name, entity_id), ()):
                    look.call.answer(hub.entities.get(look.request))
        self._tick_at(hub.next_due())
        if refused:
            raise refused
        return answer

    def _try(self, hub: str, work: Callable[[Hub], Any]) -> None:
        """Do something that nobody waits for. After an error, which is printed, the hub is loaded from the store."""
        with suppress(Exception):
            self._do(hub, work)

    def _require_storage(self) -> None:
        """Raise StateUnusable while nothing can be stored: workers should not do work that would be lost."""
        if not self._trouble:
            return
        if time.monotonic() < self._retry_at:
            raise StateUnusable(self._trouble)
        self._retry_at = time.monotonic() + 1
        self._store.try_to_write()
        self._trouble = ""
        print("The state can be stored again.", file=sys.stderr, flush=True)

    def _hub(self, name: str) -> Hub:
        """The hub of this name; it is created on first use."""
        if name not in self._hubs:
            # Another nonce each time, so that older tokens can be recognised.
            hub = Hub(self._store.of(name), self._ids, uuid.uuid4().hex[:12])
            hub.load(_now())
            for number, stream in self._streams.items():
                if stream.hub == name:
                    hub.connect(number, stream.request, _now())
            self._hubs[name] = hub
            self._next_tick = 0.0
        return self._hubs[name]

    def _start_over(self, name: str, error: Exception) -> None:
        """Load a hub from the store again: what it has in memory may differ."""
        if isinstance(error, StateUnusable):
            if not self._trouble:
                print(f"Not stored: {error}", file=sys.stderr, flush=True)
            self._trouble, self._retry_at = str(error), time.monotonic() + 1
        else:
            traceback.print_exception(error)
        self._hubs.pop(name, None)
        self._started_over.add(name)
        with suppress(StateUnusable, Refused):
            self._hub(name)

    # Time ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Do what is due. Runs at least once a second, because the clock may be changed."""
        now, seconds = _now(), time.monotonic()
        if seconds > self._tidy_at:
            self._tidy_at = seconds + 600
            with suppress(StateUnusable):
                self._store.forget_answers(now - REMEMBER_ANSWERS)
        if seconds > self._space_at:
            self._space_at = seconds + 1
            self._store.give_space_back()
        for name, hub in list(self._hubs.items()):
            due = hub.next_due()
            if self._trouble or name in self._started_over or (due is not None and due <= now):
                self._started_over.discard(name)
                self._try(name, lambda hub: hub.tick(now))
        while self._looking and (self._looking[0].until <= seconds or self._looking[0].call.is_over):
            self._end_look(self._looking.popleft())
        for stream in self._streams.values():
            if stream.ping_at <= seconds:
                stream.ping_at = seconds + PING_SECONDS
                stream.call.send(pb.WorkItem(healthPing=pb.HealthPing()))
        if self._purges:
            self._purge_some(*self._purges.popleft())
        self._next_tick = min(self._looking[0].until if self._looking else seconds + 1, seconds + 1)
        if self._purges:
            self._next_tick = seconds
        for hub in self._hubs.values():
            self._tick_at(hub.next_due())

    def _tick_at(self, due: int | None) -> None:
        """Tick at this time at the latest, in microseconds since 1970."""
        if due is not None:
            pause = max(0.001, (due - _now()) / 1_000_000)  # after a failure, no tight loop
            self._next_tick = min(self._next_tick, time.monotonic() + pause)

    # Waiting clients -------------------------------------------------------------------------------------------

    def _get_instance(self, request: pb.GetInstanceRequest, call: Call) -> None:
        call.answer(self._hub(_hub_of(call)).orchestrations.get(request))

    def _wait(self, is_met: Callable[[Orchestration], bool], request: pb.GetInstanceRequest, call: Call) -> None:
        """Answer when the condition is met, or immediately if there is no such orchestration."""
        key = _hub_of(call), request.instanceId
        orchestration = self._hub(key[0]).orchestrations.find(request.instanceId)
        if orchestration is None:
            return call.answer(pb.GetInstanceResponse(exists=False))
        if is_met(orchestration):
            return call.answer(_found(orchestration, request))
        wait = _Wait(is_met, request, call)
        self._waits.setdefault(key, []).append(wait)
        return call.keep(lambda: _remove(self._waits, key, wait))

    def _wake(self, hub: str, orchestration: Orchestration) -> None:
        for wait in list(self._waits.get((hub, orchestration.id), ())):
            if wait.is_met(orchestration):
                _remove(self._waits, (hub, orchestration.id), wait)
                wait.call.answer(_found(orchestration, wait.request))

    def _get_entity(self, request: pb.GetEntityRequest, call: Call) -> None:
        """Answer after the next change of a busy entity, or after LOOK_SECONDS.

        A client that polls the entity asks less often this way, and sees the change sooner.
        """
        hub = _hub_of(call)
        entities = self._hub(hub).entities
        if not entities.busy(request.instanceId):
            return call.answer(entities.get(request))
        look = _Look((hub, request.instanceId), request, call, time.monotonic() + LOOK_SECONDS)
        self._looks.setdefault(look.key, []).append(look)
        self._looking.append(look)
        self._next_tick = min(self._next_tick, look.until)
        return None

    def _end_look(self, look: _Look) -> None:
        """Answer with the current state, after LOOK_SECONDS."""
        if not look.call.is_over:
            _remove(self._looks, look.key, look)
            with suppress(StateUnusable):
                look.call.answer(self._hub(look.key[0]).entities.get(look.request))

    # Workers ---------------------------------------------------------------------------------------------------

    def _get_work_items(self, request: pb.GetWorkItemsRequest, call: Call) -> None:
        """Stream work to a worker; when the stream ends, its unfinished work is redelivered."""
        name, number = _hub_of(call), next(self._ids)
        self._streams[number] = _Stream(name, request, call, time.monotonic() + PING_SECONDS)

        def end() -> None:
            del self._streams[number]
            try:
                self._do(name, lambda hub: hub.disconnect(number, _now()))
            except StateUnusable as problem:
                self._start_over(name, problem)  # without this worker: it must not receive work later

        call.keep(end)
        self._do(name, lambda hub: hub.connect(number, request, _now()))

    # Queries ---------------------------------------------------------------------------------------------------

    def _query_instances(self, request: pb.QueryInstancesRequest, call: Call) -> None:
        found, token = self._store.orchestrations(_hub_of(call), request.query)
        response = pb.QueryInstancesResponse(
            orchestrationState=[state(orchestration, request.query.fetchInputsAndOutputs) for orchestration in found]
        )
        if token:
            response.continuationToken.value = token
        call.answer(response)

    def _list_ids(self, request: pb.ListInstanceIdsRequest, call: Call) -> None:
        ids, token = self._store.finished_ids(_hub_of(call), request)
        response = pb.ListInstanceIdsResponse(instanceIds=ids)
        if token:
            response.lastInstanceKey.value = token
        call.answer(response)

    def _query_entities(self, request: pb.QueryEntitiesRequest, call: Call) -> None:
        found, token = self._store.entities(_hub_of(call), request.query)
        response = pb.QueryEntitiesResponse()
        for entity, waiting in found:
            added = response.entities.add()
            added.CopyFrom(metadata(entity, request.query.includeState))
            added.backlogQueueSize = waiting
        if token:
            response.continuationToken.value = token
        call.answer(response)

    def _stream_history(self, request: pb.StreamInstanceHistoryRequest, call: Call) -> None:
        found = self._store.history(_hub_of(call), request.instanceId)
        if found is None or (request.executionId.value and request.executionId.value != found[0]):
            text = f"There is no orchestration with instance id '{request.instanceId}', or it has another execution id."
            raise Refused(grpc.StatusCode.NOT_FOUND, text)
        call.keep(lambda: None)
        for chunk in _chunks_of(found[1], CHUNK_BYTES):
            call.send(chunk)
        call.finish()

    def _purge(self, request: pb.PurgeInstancesRequest, call: Call) -> None:
        """Purge orchestrations, a few at a time so that other calls are not delayed."""
        limit = request.purgeInstanceFilter
        seconds = limit.timeout.seconds if limit.HasField("timeout") else 1e9
        self._purge_some(request, call, time.monotonic() + seconds, 0)

    def _purge_some(self, request: pb.PurgeInstancesRequest, call: Call, until: float, deleted: int) -> None:
        def purge(request: pb.PurgeInstancesRequest, call: Call) -> None:
            response = self._do(_hub_of(call), lambda hub: hub.call("PurgeInstances", request, _now()))
            response.deletedInstanceCount += deleted
            if response.isComplete.value or time.monotonic() > until:
                call.answer(response)
            else:
                self._purges.append((request, call, until, response.deletedInstanceCount))
                self._next_tick = 0.0

        _refusing(purge)(request, call)


def _found(orchestration: Orchestration, request: pb.GetInstanceRequest) -> pb.GetInstanceResponse:
    return pb.GetInstanceResponse(exists=True, orchestrationState=state(orchestration, request.getInputsAndOutputs))


def _remove(waiting: dict[tuple[str, str], list[Any]], key: tuple[str, str], one: Any) -> None:
    """Remove a waiting call, if it still waits."""
    others = waiting.get(key, [])
    if one in others:
        others.remove(one)
        if not others:
            del waiting[key]


def _now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def _hub_of(call: Call) -> str:
    """The task hub of a call. Raises Refused if it names none."""
    if hub := call.metadata.get("taskhub"):
        check_text("task hub's name", hub)
        return hub
    text = "The call names no task hub: send its name as 'taskhub' metadata (the samples: set TASKHUB)."
    raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def _refusing(handler: Handler) -> Handler:
    """The same handler, with errors sent to the caller."""

    def handle(request: Any, call: Call) -> None:
        try:
            handler(request, call)
        except Refused as refused:
            call.refuse(refused.code, str(refused))
        except StateUnusable as problem:
            call.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, str(problem))

    return handle


def _unimplemented(method: str) -> Handler:
    text = f"The local scheduler does not implement {method}."
    return lambda _, call: call.refuse(grpc.StatusCode.UNIMPLEMENTED, text)


def _chunks_of(events: Iterable[pb.HistoryEvent], limit: int) -> Iterator[pb.HistoryChunk]:
    """A history in parts that a client with default options can receive: each about `limit` bytes, or one event."""
    chunk, size = pb.HistoryChunk(), 0
    for event in events:
        if size and size + event.ByteSize() > limit:
            yield chunk
            chunk, size = pb.HistoryChunk(), 0
        chunk.events.append(event)
        size += event.ByteSize()
    if size:
        yield chunk
