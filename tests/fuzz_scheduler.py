"""Sends random and mutated messages to a scheduler, which must serve a client and a worker of another hub meanwhile.

    python tests/fuzz_scheduler.py --seconds 60 --seed 1

Afterwards the scheduler must still work, have printed nothing to stderr, and start again on its file.
"""

import argparse
import contextlib
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
from conftest import Process
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from raw_scheduler import RawScheduler, StoredScheduler
from test_scheduler import connect, echo, finished, worker

SERVICE = "TaskHubSidecarService"
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name[SERVICE].methods}
WAITING = ("WaitForInstanceStart", "WaitForInstanceCompletion", "GetWorkItems", "StreamInstanceHistory")
OFTEN = sorted(METHODS) + 2 * [
    "StartInstance",
    "SignalEntity",
    "GetWorkItems",
    *(name for name in METHODS if name.startswith("Complete")),
]
PATIENCE = 20.0  # seconds within which the other task hub must be served

IDS = ["", "a", "b", "c", "a:0001", "@e@1", "@e@2", "@e", "@@", "@E@1", "é\0\n", "x" * 1024, "x" * 1025, "x" * 70_000]
TEXTS = [*IDS, "null", "[", '["a", 1]', "[1, 2]", "-1", "NaN", '"' + "\U0001f600" * 1000 + '"', "y" * 1_048_577]
NUMBERS = [0, 1, 2, 3, 5, 100, 2**31 - 1, -1, -(2**31)]
LARGE_NUMBERS = [*NUMBERS, 2**63 - 1, -(2**63), 1_800_000_000, 253_402_300_799, 10**12]
INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)

Codes = Counter[tuple[str, str]]


class Fuzz:
    """One source of random calls.

    Attributes:
        defects: wrong answers.
        codes: how often each method has returned each status.
    """

    def __init__(self, address: str, seed: str, tokens: list[tuple[str, str]]) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._target = address.removeprefix("http://")
        self._tame = False  # whether to make reasonable messages
        self._tokens = tokens  # completion tokens of deliveries, each with its instance
        self.defects: list[str] = []
        self.codes: Codes = Counter()

    def run(self, until: float) -> None:
        """Call until that time."""
        while time.monotonic() < until and not self.defects:
            with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                for _ in range(self._random.randrange(1, 200)):
                    if time.monotonic() < until:
                        self._call(channel)
            if self._random.random() < 0.2:
                self._noise()

    def _call(self, channel: grpc.Channel) -> None:
        name = self._random.choice(OFTEN)
        self._tame = self._random.random() < 0.5
        request = self.message(METHODS[name].input_type)
        if name.startswith(("Complete", "Abandon")) and self._tokens and self._random.random() < 0.9:
            token, instance = self._tokens.pop(self._random.randrange(len(self._tokens)))
            request.completionToken = token
            if hasattr(request, "instanceId") and self._random.random() < 0.9:
                request.instanceId = instance
        if name == "GetWorkItems" and self._random.random() < 0.7:
            request.ClearField("workItemFilters")
        metadata = (("taskhub", self._random.choice(["fuzzed", "fuzzed", "other", "x" * 2000])),)
        if self._random.random() < 0.2:
            metadata += (("x-request-id", self._random.choice(["1", "2", "z" * 3000])),)
        if self._random.random() < 0.01:
            metadata = ()
        self._send(channel, name, request, metadata)

    def _send(self, channel: grpc.Channel, name: str, request: Any, metadata: Any) -> None:
        """Call, and check the answer."""
        data = request.SerializeToString()
        if self._random.random() < 0.15:
            data = self._mutated(data)
        method = f"/{SERVICE}/{name}"
        deadline = self._random.choice([0.001, 0.05, 0.3]) if name in WAITING else PATIENCE
        try:
            if name in ("GetWorkItems", "StreamInstanceHistory"):
                self._read(channel, channel.unary_stream(method)(data, metadata=metadata, timeout=deadline), metadata)
            else:
                channel.unary_unary(method)(data, metadata=metadata, timeout=deadline)
            self.codes[name, "OK"] += 1
        except grpc.RpcError as error:
            code, details = error.code(), error.details()  # pyright: ignore[reportAttributeAccessIssue]
            self.codes[name, code.name] += 1
            late = code == grpc.StatusCode.DEADLINE_EXCEEDED and name not in WAITING
            if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE) or late:
                self.defects.append(f"{name}: {code.name}: {details}\n{str(request)[:2000]}")

    def _read(self, channel: grpc.Channel, stream: Any, metadata: Any) -> None:
        """Read some of a stream. Complete its work with something random, or keep the token for later."""
        for _, message in zip(range(self._random.randrange(1, 30)), stream, strict=False):
            item = None
            with contextlib.suppress(DecodeError):
                item = pb.WorkItem.FromString(message)
            if item and item.completionToken:
                if self._random.random() < 0.8:
                    self._complete(channel, item, metadata)
                else:
                    instance = item.activityRequest.orchestrationInstance.instanceId
                    self._tokens.append((item.completionToken, item.orchestratorRequest.instanceId or instance))
        if self._random.random() < 0.5:
            stream.cancel()

    def _complete(self, channel: grpc.Channel, item: pb.WorkItem, metadata: Any) -> None:
        """Complete a work item with something random."""
        self._tame = self._random.random() < 0.8
        name = {
            "orchestratorRequest": "CompleteOrchestratorTask",
            "activityRequest": "CompleteActivityTask",
            "entityRequest": "CompleteEntityTask",
        }[item.WhichOneof("request") or ""]
        if self._random.random() < 0.1:
            name = self._random.choice([method for method in METHODS if method.startswith("Abandon")])
        response = self.message(METHODS[name].input_type)
        response.completionToken = item.completionToken
        if isinstance(response, pb.OrchestratorResponse):
            response.instanceId, response.isPartial = item.orchestratorRequest.instanceId, False
            for action in response.actions:
                for kind in ("entityOperationCalled", "entityOperationSignaled", "entityUnlockSent"):
                    if action.sendEntityMessage.HasField(kind):
                        target = self._random.choice(["@e@1", "@e@2", "@f@1"])
                        getattr(action.sendEntityMessage, kind).targetInstanceId.value = target
            if self._random.random() < 0.8:  # then the orchestration continues
                ends = ("completeOrchestration", "rewindOrchestration", None)
                lasting = [a for a in response.actions if a.WhichOneof("orchestratorActionType") not in ends]
                del response.actions[:]
                response.actions.extend(lasting)
        elif isinstance(response, pb.ActivityResponse):
            response.instanceId = item.activityRequest.orchestrationInstance.instanceId
            response.taskId = item.activityRequest.taskId
        elif isinstance(response, pb.EntityBatchResult):
            response.ClearField("failureDetails")
        self._send(channel, name, response, metadata)

    def _mutated(self, data: bytes) -> bytes:
        changed = bytearray(data[: self._random.randrange(len(data) + 1)] if self._random.random() < 0.3 else data)
        for _ in range(self._random.randrange(1, 6)):
            if changed:
                changed[self._random.randrange(len(changed))] = self._random.randrange(256)
        return bytes(changed)

    def _noise(self) -> None:
        """Send something that is not gRPC, or only the beginning of it."""
        host, port = self._target.split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 2) as connection:
            beginning = self._random.choice([b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
            connection.sendall(beginning + self._random.randbytes(self._random.randrange(2000)))

    # Messages --------------------------------------------------------------------------------------------------

    def message(self, descriptor: Any, depth: int = 0) -> Any:
        """A random message of this type."""
        message = Empty() if descriptor.name == "Empty" else _class_of(descriptor)()
        chosen = {self._random.choice(oneof.fields).name for oneof in descriptor.oneofs}
        for field in descriptor.fields:
            if field.containing_oneof and field.name not in chosen:
                continue
            needed = self._tame and (field.containing_oneof or field.name in ("id", "name"))
            if needed or self._random.random() < (0.6 if depth < 5 else 0.1):
                self._fill(message, field, depth)
        return message

    def _fill(self, message: Any, field: Any, depth: int) -> None:
        if field.message_type and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is None:
                for _ in range(self._random.choice([0, 1, 3, 150])):
                    getattr(message, field.name)[self._text()[:2000]] = self._text()[:2000]
        elif field.is_repeated:
            for _ in range(self._random.choice([0, 1, 2, 5])):
                if field.message_type:
                    if depth < 6:
                        getattr(message, field.name).add().CopyFrom(self.message(field.message_type, depth + 1))
                else:
                    getattr(message, field.name).append(self._value(field))
        elif field.message_type:
            if depth < 6:
                getattr(message, field.name).CopyFrom(self.message(field.message_type, depth + 1))
        else:
            setattr(message, field.name, self._value(field))

    def _value(self, field: Any) -> Any:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
                if self._tame and (field.name == "lockSet" or "Signal" in field.containing_type.name):
                    return self._random.choice(["@e@1", "@e@2", "@f@1"])
                return self._id() if "nstance" in field.name or field.name in ("name", "lockSet") else self._text()
            case FieldDescriptor.CPPTYPE_STRING:
                return self._random.randbytes(10)
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._random.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self._random.choice([0.0, -1.0, float("inf"), float("nan"), 1e300])
            case FieldDescriptor.CPPTYPE_ENUM:
                numbers = [value.number for value in field.enum_type.values]
                return self._random.choice(numbers if self._tame else [*numbers, 77])
            case kind:
                number = self._random.choice(LARGE_NUMBERS if kind in INTEGERS else NUMBERS)
                unsigned = kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
                return abs(number) if unsigned else number

    def _id(self) -> str:
        return self._random.choice(IDS[1:7] if self._tame else IDS[1:7] * 8 + IDS)

    def _text(self) -> str:
        return self._random.choice(IDS[1:10] if self._tame else IDS * 4 + TEXTS)


def _class_of(descriptor: Any) -> Any:
    from google.protobuf.message_factory import GetMessageClass

    return GetMessageClass(descriptor)


def fuzz(address: str, seconds: float, seed: int, threads: int = 4) -> tuple[list[str], Codes, int]:
    """Fuzz a scheduler; returns its defects, its answers, and how many orchestrations were served meanwhile."""
    tokens: list[tuple[str, str]] = []
    fuzzes = [Fuzz(address, f"{seed}-{number}", tokens) for number in range(threads)]
    until, served, slowest = time.monotonic() + seconds, 0, 0.0
    running = [threading.Thread(target=one.run, args=(until,), daemon=True) for one in fuzzes]
    defects: list[str] = []
    with connect(address, "served") as client, worker(address, "served", echo):
        for thread in running:
            thread.start()
        while time.monotonic() < until and not any(one.defects for one in fuzzes):
            began = time.monotonic()
            try:
                state = finished(client, client.schedule_new_orchestration("echo", input=served), PATIENCE)
                assert state.serialized_output == str(served)
            except Exception as error:
                defects.append(f"The other task hub was not served: {error!r}")
                break
            served, slowest = served + 1, max(slowest, time.monotonic() - began)
            time.sleep(0.05)  # leaves most of the processor to the fuzzing
        for thread in running:
            thread.join(PATIENCE + 5)
            if thread.is_alive():
                defects.append("A call has not ended.")
    print(f"seed {seed}: {served} orchestrations served meanwhile, the slowest in {slowest:.2f} s", flush=True)
    codes: Codes = Counter()
    for one in fuzzes:
        defects += one.defects
        codes += one.codes
    return defects, codes, served


def fuzz_and_restart(start: Callable[..., Process], state: Path, seconds: float, seed: int) -> tuple[list[str], Codes]:
    """Fuzz a scheduler with a state file, kill it, and start it again; returns its defects and its answers."""
    scheduler = StoredScheduler(start, state)
    defects, codes, _ = fuzz(scheduler.address, seconds, seed)
    for _ in range(2):
        if scheduler.process.popen.poll() is not None:
            defects.append(f"It has ended with {scheduler.process.popen.returncode}.")
        if scheduler.process.errors:
            defects.append(f"It has printed: {scheduler.process.errors[-5000:]}")
        if defects:
            break
        scheduler.restart()
        with (
            RawScheduler(scheduler.address, "fuzzed") as raw,
            connect(scheduler.address, "served") as client,
            worker(scheduler.address, "served", echo),
        ):
            assert finished(client, client.schedule_new_orchestration("echo", input="after")).serialized_output
            raw.call("QueryInstances", pb.QueryInstancesRequest())
            raw.call("QueryEntities", pb.QueryEntitiesRequest())
            stream = raw.work()
            raw.start("after")
            stream.take()
            stream.end()
    scheduler.process.stop()
    return defects, codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processes: list[Process] = []

        def start(*command: Any) -> Process:
            processes.append(Process(*command))
            return processes[-1]

        defects, codes = fuzz_and_restart(start, Path(folder, "state.db"), arguments.seconds, arguments.seed)
        for process in processes:
            process.stop()
    for (name, code), count in sorted(codes.items()):
        print(f"{count:7} {name} {code}")
    for defect in defects:
        print(f"DEFECT {defect}")
    raise SystemExit(1 if defects else 0)


if __name__ == "__main__":
    main()
