"""A scheduler's gRPC calls without the SDK, and a scheduler that can be killed and started again."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as stubs
import grpc
from conftest import Process, Start

from runner.prove.processes import free_port


class RawScheduler:
    """Calls by name, in one task hub, for use in a `with`."""

    def __init__(self, address: str, hub: str) -> None:
        self.hub = hub
        options = [("grpc.use_local_subchannel_pool", 1)]  # a separate connection
        self._channel = grpc.insecure_channel(address.removeprefix("http://"), options)
        self._stub = stubs.TaskHubSidecarServiceStub(self._channel)

    def __enter__(self) -> "RawScheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: Any = None, request_id: str = "", timeout: float | None = 30) -> Any:
        """The answer to a call: a message, or an iterator of messages."""
        metadata = [("taskhub", self.hub)] + ([("x-request-id", request_id)] if request_id else [])
        return getattr(self._stub, method)(request, metadata=metadata, timeout=timeout, wait_for_ready=True)

    def call_later(self, method: str, request: Any) -> grpc.Future:
        """The answer of a call that may take long."""
        return getattr(self._stub, method).future(request, metadata=[("taskhub", self.hub)])

    def work(self, **request: Any) -> "WorkStream":
        """A worker's stream."""
        return WorkStream(self.call("GetWorkItems", pb.GetWorkItemsRequest(**request), timeout=None))

    def start(self, name: str, instance_id: str = "", **fields: Any) -> str:
        """Start an orchestration; returns its instance id."""
        request = pb.CreateInstanceRequest(instanceId=instance_id or uuid.uuid4().hex, name=name, **fields)
        return self.call("StartInstance", request).instanceId

    def state(self, instance_id: str) -> pb.OrchestrationState:
        """An orchestration that must exist, with its input and output."""
        request = pb.GetInstanceRequest(instanceId=instance_id, getInputsAndOutputs=True)
        response = self.call("GetInstance", request)
        assert response.exists, f"there is no orchestration {instance_id}"
        return response.orchestrationState

    def status(self, instance_id: str) -> str:
        """The short name of an orchestration's status."""
        name = pb.OrchestrationStatus.Name(self.state(instance_id).orchestrationStatus)
        return name.removeprefix("ORCHESTRATION_STATUS_")

    def history(self, instance_id: str) -> list[pb.HistoryEvent]:
        """An orchestration's history."""
        request = pb.StreamInstanceHistoryRequest(instanceId=instance_id)
        return [event for chunk in self.call("StreamInstanceHistory", request) for event in chunk.events]

    def entity(self, entity_id: str) -> pb.EntityMetadata | None:
        """An entity with its state; None if there is none."""
        response = self.call("GetEntity", pb.GetEntityRequest(instanceId=entity_id, includeState=True))
        return response.entity if response.exists else None


class WorkStream:
    """The work items that a worker receives, without pings."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[pb.WorkItem]:
        return (item for item in self._call if not item.HasField("healthPing"))

    def take(self) -> pb.WorkItem:
        """The next work item, as soon as it comes."""
        return next(iter(self))

    def end(self) -> None:
        """End the stream, like a worker that stops."""
        self._call.cancel()


class StoredScheduler:
    """A scheduler on a state file, which can be killed and started again."""

    def __init__(self, start: Start, state: Path, *options: str) -> None:
        self.state = state
        self._start, self._options, self._port = start, options, free_port()
        self.address = ""
        self.process: Process
        self.start()

    def start(self) -> None:
        """Start it, each time on the same port."""
        self.process = self.begin("--port", str(self._port))
        self.address = self.process.wait_for(r"scheduler ready: (\S+)\n")[1]

    def begin(self, *options: str) -> Process:
        """Start another process on the state file, without waiting for it."""
        command = ("-m", "local_services.scheduler", "--state", self.state, *self._options, *options)
        return self._start(sys.executable, *command)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()

    def restart(self) -> None:
        """Kill it and start it on the same port."""
        self.kill()
        self.start()
