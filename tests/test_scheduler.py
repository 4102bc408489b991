"""The local scheduler over gRPC, with the SDK's clients: what the SDK's test backend does not do."""

import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as stubs
import grpc
import pytest
from conftest import Process, Start, clean_environment, eventually
from durabletask import history, task
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import OrchestrationState, TaskHubGrpcClient
from durabletask.entities import DurableEntity, EntityInstanceId
from durabletask.worker import ConcurrencyOptions

MEGABYTE = 1024 * 1024


@pytest.fixture
def client(scheduler: str, hub: str) -> Iterator[DurableTaskSchedulerClient]:
    client = connect(scheduler, hub)
    yield client
    client.close()


def connect(address: str, hub: str) -> DurableTaskSchedulerClient:
    return DurableTaskSchedulerClient(**scheduler_options(address, hub))


def scheduler_options(address: str, hub: str) -> dict[str, Any]:
    quiet = logging.getLogger("durabletask")  # without a logger, the SDK adds a handler
    quiet.setLevel(logging.CRITICAL)
    return {
        "host_address": address,
        "taskhub": hub,
        "token_credential": None,
        "secure_channel": False,
        "logger": quiet,
    }


@contextmanager
def worker(address: str, hub: str, *registered: Any) -> Iterator[None]:
    """A worker in this process with these orchestrators (context, input), activities and entities."""
    worker = DurableTaskSchedulerWorker(
        **scheduler_options(address, hub),
        concurrency_options=ConcurrencyOptions(maximum_thread_pool_workers=32),
    )
    for item in registered:
        if isinstance(item, type):
            worker.add_entity(item, item.__name__.lower())
        elif item.__name__.endswith("_activity"):
            worker.add_activity(item)
        else:
            worker.add_orchestrator(item)
    worker.use_work_item_filters()
    worker.start()
    try:
        yield
    finally:
        worker.stop()


def finished(client: TaskHubGrpcClient, instance_id: str, timeout: float = 60) -> OrchestrationState:
    state = client.wait_for_orchestration_completion(instance_id, timeout=timeout)
    assert state
    return state


def echo(_: task.OrchestrationContext, word: str) -> str:
    return word


# Work of a worker that died ---------------------------------------------------------------------------------------


class Durable:
    """Two workers, one after the other, whose steps wait at a gate; see durable_program.py."""

    def __init__(self, start: Start, address: str, hub: str, folder: Path) -> None:
        self._effects, self._gate = folder / "effects", folder / "gate"
        self._effects.touch()
        env = clean_environment(EFFECTS=str(self._effects), GATE=str(self._gate))
        program = Path(__file__).with_name("durable_program.py")
        self._start = lambda: start(sys.executable, program, address, hub, env=env)

    def start(self) -> Process:
        process = self._start()
        process.wait_for("Worker ready")
        return process

    def begun(self, step: str) -> int:
        return self._effects.read_text().splitlines().count(step)

    def open_gate(self) -> None:
        self._gate.touch()


@pytest.fixture
def durable(start: Start, scheduler: str, hub: str, tmp_path: Path) -> Durable:
    return Durable(start, scheduler, hub, tmp_path)


@pytest.mark.parametrize(("orchestrator", "step"), [("call_activity", "activity"), ("slow_replay", "orchestrator")])
def test_a_step_whose_worker_is_killed_is_given_to_another(
    orchestrator: str, step: str, durable: Durable, client: DurableTaskSchedulerClient
) -> None:
    first = durable.start()
    instance = client.schedule_new_orchestration(orchestrator, input="word")
    eventually(lambda: durable.begun(f"{step} word") == 1, "the step has begun")
    first.kill()
    durable.start()
    eventually(lambda: durable.begun(f"{step} word") == 2, "the step has begun again")
    durable.open_gate()
    assert finished(client, instance).serialized_output == '"WORD"'
    assert durable.begun(f"{step} word") == 2


def test_an_entity_whose_worker_is_killed_goes_on_with_another(
    durable: Durable, client: DurableTaskSchedulerClient
) -> None:
    counter = EntityInstanceId("counter", "one")
    first = durable.start()
    client.signal_entity(counter, "add", 1)
    eventually(lambda: durable.begun("entity 1"), "the operation has begun")
    client.signal_entity(counter, "add", 10)
    first.kill()
    durable.start()
    eventually(lambda: durable.begun("entity 1") == 2, "the operation has begun again")
    durable.open_gate()
    eventually(lambda: entity_state(client, counter) == "11", "both operations are counted once")


def entity_state(client: TaskHubGrpcClient, entity: EntityInstanceId) -> str | None:
    metadata = client.get_entity(entity)
    return metadata.get_state() if metadata else None


def test_a_late_completion_does_not_count(scheduler: str, hub: str, client: DurableTaskSchedulerClient) -> None:
    """A worker whose stream ended continues to work; its result comes after the second worker's."""
    gates = [threading.Event(), threading.Event()]
    calls: list[int] = []
    effects: list[str] = []

    def add_activity(_: task.ActivityContext, __: Any) -> str:
        calls.append(0)
        number = len(calls)
        gates[number - 1].wait(60)
        return f"worker {number}"

    def twice(context: task.OrchestrationContext, _: Any) -> Any:
        first = yield context.call_activity(add_activity)
        if not context.is_replaying:
            effects.append(first)
        yield context.wait_for_external_event("continue")
        return first

    slow = DurableTaskSchedulerWorker(**scheduler_options(scheduler, hub))
    slow.add_activity(add_activity)
    slow.use_work_item_filters()
    slow.start()
    instance = client.schedule_new_orchestration("twice")
    with worker(scheduler, hub, twice):
        eventually(lambda: len(calls) == 1, "the first worker has the activity")
        stopping = threading.Thread(target=slow.stop)  # ends its stream, then waits for the activity
        stopping.start()
        with worker(scheduler, hub, add_activity):
            eventually(lambda: len(calls) == 2, "the second worker has it too")
            gates[0].set()
            stopping.join(60)
            assert not effects
            gates[1].set()
            eventually(lambda: effects, "the second worker's result arrived")
        client.raise_orchestration_event(instance, "continue")
        assert finished(client, instance).serialized_output == '"worker 2"'
    completed = [e for e in client.get_orchestration_history(instance) if isinstance(e, history.TaskCompletedEvent)]
    assert len(completed) == 1


# Task hubs --------------------------------------------------------------------------------------------------------


def test_task_hubs_are_apart(scheduler: str, hub: str, client: DurableTaskSchedulerClient) -> None:
    with connect(scheduler, f"{hub}-other") as other:
        instance = client.schedule_new_orchestration("echo", input="here", instance_id="same-id")
        assert other.schedule_new_orchestration("echo", input="there", instance_id="same-id") == instance
        with worker(scheduler, hub, echo):
            assert finished(client, instance).serialized_output == '"here"'
        state = other.get_orchestration_state(instance)
        assert state
        assert state.runtime_status.name == "PENDING"
        with worker(scheduler, f"{hub}-other", echo):
            assert finished(other, instance).serialized_output == '"there"'


def test_a_call_without_a_task_hub_is_told_so(scheduler: str) -> None:
    with (
        TaskHubGrpcClient(host_address=scheduler) as client,
        pytest.raises(grpc.RpcError, match="names no task hub"),
    ):
        client.get_orchestration_state("any")


# Waiting ----------------------------------------------------------------------------------------------------------


def test_many_waiting_clients_block_nobody(scheduler: str, hub: str, client: DurableTaskSchedulerClient) -> None:
    def wait_for_go(context: task.OrchestrationContext, _: Any) -> Any:
        return (yield context.wait_for_external_event("go"))

    with worker(scheduler, hub, wait_for_go, echo), ThreadPoolExecutor(200) as pool:
        instances = [client.schedule_new_orchestration("wait_for_go") for _ in range(200)]
        waits = [pool.submit(finished, client, instance) for instance in instances]
        eventually(
            lambda: all(s.runtime_status.name == "RUNNING" for s in client.get_all_orchestration_states()), "all wait"
        )
        assert finished(client, client.schedule_new_orchestration("echo", input="through")).serialized_output
        for instance in instances:
            client.raise_orchestration_event(instance, "go", data=instance)
        assert [wait.result().serialized_output for wait in waits] == [f'"{instance}"' for instance in instances]


@pytest.mark.long
def test_a_wait_without_a_timeout_and_a_child_last_longer_than_thirty_seconds(
    scheduler: str, hub: str, client: DurableTaskSchedulerClient
) -> None:
    def child(context: task.OrchestrationContext, _: Any) -> Any:
        yield context.create_timer(timedelta(seconds=31))
        return "patient"

    def parent(context: task.OrchestrationContext, _: Any) -> Any:
        return (yield context.call_sub_orchestrator(child))

    with worker(scheduler, hub, parent, child):
        began = time.monotonic()
        instance = client.schedule_new_orchestration("parent")
        state = client.wait_for_orchestration_completion(instance, timeout=None)  # pyright: ignore[reportArgumentType]
        assert state
        assert state.serialized_output == '"patient"'
        assert time.monotonic() - began > 31


def test_a_wait_for_nothing_ends(client: DurableTaskSchedulerClient) -> None:
    assert client.wait_for_orchestration_completion("never-started", timeout=60) is None


def test_a_timer_does_not_fire_for_an_instance_restarted_under_the_same_id(
    scheduler: str, hub: str, client: DurableTaskSchedulerClient
) -> None:
    def race(context: task.OrchestrationContext, seconds: Any) -> Any:
        timer = context.create_timer(timedelta(seconds=2))
        first = yield task.when_any([timer, context.wait_for_external_event("go")])
        return "late" if first is timer else "in time"

    with worker(scheduler, hub, race):
        instance = client.schedule_new_orchestration("race")
        client.raise_orchestration_event(instance, "go")
        assert finished(client, instance).serialized_output == '"in time"'
        time.sleep(1)  # half of the first timer's time
        began = time.monotonic()
        client.restart_orchestration(instance)
        assert finished(client, instance).serialized_output == '"late"'
        assert time.monotonic() - began >= 2


# History ----------------------------------------------------------------------------------------------------------


def test_every_event_of_the_history_tells_its_time(
    scheduler: str, hub: str, client: DurableTaskSchedulerClient
) -> None:
    def wait_activity(_: task.ActivityContext, __: Any) -> None:
        time.sleep(0.2)

    class Clock(DurableEntity):
        def tick(self) -> str:
            return "tock"

    def child(context: task.OrchestrationContext, _: Any) -> Any:
        yield context.create_timer(timedelta(milliseconds=10))

    def all_kinds(context: task.OrchestrationContext, _: Any) -> Any:
        yield context.call_activity(wait_activity)
        yield context.call_entity(EntityInstanceId("clock", "one"), "tick")
        yield context.call_sub_orchestrator(child)
        yield context.wait_for_external_event("go")

    began = datetime.now(timezone.utc)
    with worker(scheduler, hub, all_kinds, child, wait_activity, Clock):
        instance = client.schedule_new_orchestration("all_kinds")
        client.raise_orchestration_event(instance, "go")
        finished(client, instance)
    events = client.get_orchestration_history(instance)
    times = [event.timestamp.replace(tzinfo=timezone.utc) for event in events]
    assert len({type(event) for event in events}) > 8
    assert all(began - timedelta(seconds=1) < time <= datetime.now(timezone.utc) for time in times), times
    scheduled = next(e for e in events if isinstance(e, history.TaskScheduledEvent))
    completed = next(e for e in events if isinstance(e, history.TaskCompletedEvent))
    assert completed.timestamp - scheduled.timestamp >= timedelta(seconds=0.2)


# Size limits ------------------------------------------------------------------------------------------------------


def large_output(_: task.OrchestrationContext, size: int) -> str:
    return "x" * (size - 2)  # two for the quotes


def large_status(context: task.OrchestrationContext, size: int) -> str:
    context.set_custom_status("x" * size)
    return "done"


def large_activity(_: task.ActivityContext, size: Any) -> str:
    return "x" * size


def large_activity_output(context: task.OrchestrationContext, size: int) -> Any:
    yield context.call_activity(large_activity, input=size)


def large_activity_input(context: task.OrchestrationContext, size: int) -> Any:
    yield context.call_activity(large_activity, input="x" * size)


class Hoard(DurableEntity):
    def put(self, size: int) -> int:
        self.set_state("x" * size)
        return size


def large_entity(context: task.OrchestrationContext, size: int) -> Any:
    return (yield context.call_entity(EntityInstanceId("hoard", "one"), "put", size))


@pytest.mark.parametrize(
    ("orchestrator", "named"),
    [
        (large_output, "output"),
        (large_status, "custom status"),
        (large_activity_output, "output of activity 'large_activity'"),
        (large_activity_input, "input of activity 'large_activity'"),
        (large_entity, "state of entity '@hoard@one'"),
    ],
)
@pytest.mark.parametrize("size", [MEGABYTE + 1, 5 * MEGABYTE])
def test_what_is_too_large_fails_its_instance_with_a_message(
    orchestrator: Callable[..., Any],
    named: str,
    size: int,
    scheduler: str,
    hub: str,
    client: DurableTaskSchedulerClient,
) -> None:
    with worker(scheduler, hub, orchestrator, large_activity, Hoard):
        state = finished(client, client.schedule_new_orchestration(orchestrator, input=size))
    assert state.runtime_status.name == "FAILED"
    assert state.failure_details
    assert re.search(rf"The {re.escape(named)} has [\d,]+ bytes; .* 1,048,576", state.failure_details.message)


def test_a_megabyte_is_not_too_large(scheduler: str, hub: str, client: DurableTaskSchedulerClient) -> None:
    with worker(scheduler, hub, large_output):
        state = finished(client, client.schedule_new_orchestration(large_output, input=MEGABYTE))
    assert state.runtime_status.name == "COMPLETED"
    assert len(state.serialized_output or "") == MEGABYTE


def test_callers_are_told_what_is_too_large(client: DurableTaskSchedulerClient) -> None:
    large = "x" * MEGABYTE
    with pytest.raises(grpc.RpcError, match="input of orchestration 'echo'"):
        client.schedule_new_orchestration("echo", input=large)
    instance = client.schedule_new_orchestration("echo", input="small")
    with pytest.raises(grpc.RpcError, match="data of event 'news'"):
        client.raise_orchestration_event(instance, "news", data=large)
    with pytest.raises(grpc.RpcError, match="input of operation 'run'"):
        client.signal_entity(EntityInstanceId("hoard", "one"), "run", large)
    with pytest.raises(grpc.RpcError, match="output of the termination"):
        client.terminate_orchestration(instance, output=large)


def test_a_history_that_no_worker_can_receive_fails_its_instance(
    scheduler: str, hub: str, client: DurableTaskSchedulerClient
) -> None:
    def collector(context: task.OrchestrationContext, _: Any) -> Any:
        for _ in range(6):
            yield context.call_activity(large_activity, input=MEGABYTE - 100)

    with worker(scheduler, hub, collector, large_activity):
        state = finished(client, client.schedule_new_orchestration("collector"))
    assert state.runtime_status.name == "FAILED"
    assert state.failure_details
    assert "a worker receives 4,194,304 at most" in state.failure_details.message


@pytest.mark.long
def test_a_worker_without_work_is_sent_a_ping(scheduler: str, hub: str) -> None:
    with grpc.insecure_channel(scheduler.removeprefix("http://")) as channel:
        stream = stubs.TaskHubSidecarServiceStub(channel).GetWorkItems(
            pb.GetWorkItemsRequest(), metadata=[("taskhub", hub)]
        )
        assert [next(stream).HasField("healthPing") for _ in range(2)] == [True, True]
        stream.cancel()


# The process ------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said_in_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(sys.executable, "-m", "local_services.scheduler", "--port", str(port))
        assert process.wait() == 2
    assert process.errors.count("\n") == 1
    assert str(port) in process.errors
    assert "--port" in process.errors


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "end of input"])
def test_it_stops_when_told_even_while_a_client_waits(how: str, start: Start, hub: str) -> None:
    process = start(sys.executable, "-m", "local_services.scheduler", "--port", "0", "--supervised")
    address = process.wait_for(r"ready: (\S+)")[1]
    with connect(address, hub) as client, worker(address, hub, echo), ThreadPoolExecutor(1) as pool:
        instance = client.schedule_new_orchestration("never registered")
        waiting = pool.submit(client.wait_for_orchestration_completion, instance)
        if how == "end of input":
            assert process.popen.stdin
            process.popen.stdin.close()
        else:
            process.signal(getattr(signal, how))
        assert process.wait(10) == 0
        assert process.errors == ""
        with pytest.raises(grpc.RpcError):
            waiting.result(60)


def test_it_listens_on_this_machine_only(scheduler: str) -> None:
    port = int(scheduler.rpartition(":")[2])
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    addresses = {row[1].partition(":")[0] for row in rows if row[1].endswith(f":{port:04X}")}
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, as IPv4 and inside IPv6


def test_it_takes_no_time_when_idle(start: Start, hub: str) -> None:
    process = start(sys.executable, "-m", "local_services.scheduler", "--port", "0")
    address = process.wait_for(r"ready: (\S+)")[1]
    with connect(address, hub) as client, worker(address, hub, echo):
        finished(client, client.schedule_new_orchestration("echo", input="warm"))
        before = cpu_seconds(process)
        time.sleep(3)  # the measured time
        assert cpu_seconds(process) - before < 0.06


def cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
