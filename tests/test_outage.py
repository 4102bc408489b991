"""A scheduler that is killed, silent or frozen: what workers and clients of the samples make of it."""

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from conftest import Process, Sample, Start, eventually
from durabletask import task
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.entities import DurableEntity, EntityInstanceId
from orchestrations import complaints
from raw_scheduler import StoredScheduler
from scripted_model import ScriptedModel
from test_scheduler import finished, worker
from wires import CallProxy

from runner.prove.wire import Wire

Modules = Callable[[str, str], ModuleType]
PointAt = Callable[[str], None]

UNAVAILABLE, ALREADY_EXISTS = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture
def stored(start: Start, tmp_path: Path) -> StoredScheduler:
    return StoredScheduler(start, tmp_path / "state.db")


def lines_about_the_scheduler(process: Process) -> list[str]:
    """What a program has said about it on stderr, each line by its verb."""
    return re.findall(r"^The scheduler at \S+ (is unreachable|is back|does not answer)", process.errors, re.MULTILINE)


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch, hub: str) -> PointAt:
    """Has the samples' modules, in this process, use the scheduler at this address."""
    monkeypatch.setenv("TASKHUB", hub)
    return lambda address: monkeypatch.setenv("ENDPOINT", address)


@pytest.fixture
def hosting(modules: Modules) -> ModuleType:
    return modules("04", "hosting.scheduler")


@pytest.fixture
def calls(modules: Modules) -> ModuleType:
    return modules("04", "hosting.calls")


@dataclass(frozen=True)
class Wait:
    """A client that waits for a model's answer, and what it prints when it has it."""

    number: str
    arguments: tuple[str, ...]
    prints: str


WAITS = [
    Wait("01", ("Tell me a joke about a cat.",), "Joker: "),
    Wait("03", ("Plan a day in Lisbon.",), "To continue:"),
    Wait("04", (), "Improved: "),
]


@pytest.fixture
def waiting(
    sample: Callable[[str], Sample], stored: StoredScheduler, model: ScriptedModel
) -> Callable[..., tuple[Process, Process]]:
    """Starts worker and client of a sample; the client waits for a model that is held."""

    def start(wait: Wait, *more: str) -> tuple[Process, Process]:
        one = sample(wait.number)
        one.settings |= {"ENDPOINT": stored.address, "REDIS_CONNECTION_STRING": "redis://127.0.0.1:9"}
        model.held = threading.Event()
        worker = one.start_worker()
        client = one.start_client(*wait.arguments, *more)
        assert client.popen.stdin
        client.popen.stdin.close()
        eventually(lambda: model.requests, "the model is asked")
        return worker, client

    return start


# Workers ----------------------------------------------------------------------------------------------------------


def test_worker_and_client_are_back_within_two_seconds_and_say_so_once(
    waiting: Callable[..., tuple[Process, Process]], stored: StoredScheduler, model: ScriptedModel
) -> None:
    both = waiting(WAITS[0])
    stored.kill()
    for one in both:
        eventually(lambda one=one: lines_about_the_scheduler(one) == ["is unreachable"], "it says that it is away")
    time.sleep(8)  # so long that pauses between attempts which grow each time would have grown beyond two seconds
    stored.start()
    began = time.monotonic()
    for one in both:
        eventually(lambda one=one: "is back" in one.errors, "it is connected again")
    assert time.monotonic() - began < 3, "two seconds, and one for a busy machine"
    assert model.held
    model.held.set()
    worker, client = both
    assert client.wait() == 0, client.errors
    worker.stop()
    for one in both:
        assert lines_about_the_scheduler(one) == ["is unreachable", "is back"]
        assert complaints(one).count("\n") == 2, one.errors


def test_a_result_that_meets_an_outage_is_delivered_after_it(
    waiting: Callable[..., tuple[Process, Process]], stored: StoredScheduler, model: ScriptedModel
) -> None:
    worker, client = waiting(WAITS[0])
    stored.kill()
    eventually(lambda: lines_about_the_scheduler(worker) == ["is unreachable"], "the worker has seen it")
    assert model.held
    model.held.set()
    stored.start()
    assert client.wait() == 0, client.errors
    worker.stop()
    assert "Failed to deliver" not in worker.errors


class Gate(DurableEntity):
    """An entity whose operation lasts until the test opens the gate."""

    opened = threading.Event()
    entered = threading.Event()

    def enter(self, _: None) -> None:
        self.entered.set()
        self.opened.wait(60)


def test_a_worker_leaves_a_connection_that_went_silent(
    hosting: ModuleType, point_at: PointAt, scheduler: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while it has work that came on that connection."""
    caplog.set_level(logging.INFO, logger="durabletask")
    with closing(Wire(scheduler)) as wire:
        point_at(wire.address)
        worker = hosting.scheduler_worker()
        worker._resiliency_options.silent_disconnect_timeout_seconds = 1.0  # instead of 45
        worker.add_entity(Gate, "gate")
        point_at(scheduler)
        worker.start()
        with hosting.scheduler_client() as client:
            try:
                client.signal_entity(EntityInstanceId("gate", "1"), "enter")
                assert Gate.entered.wait(30)
                wire.silence()
                eventually(lambda: caplog.text.count("Created fresh connection") > 1, "it is connected again", 8)
            finally:
                Gate.opened.set()
                wire.cut()
                wire.mend()
                worker.stop()


# Clients that wait ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.number)
def test_a_waiting_client_waits_on_and_gets_its_answer(
    wait: Wait, waiting: Callable[..., tuple[Process, Process]], stored: StoredScheduler, model: ScriptedModel
) -> None:
    worker, client = waiting(wait)
    stored.kill()
    eventually(lambda: lines_about_the_scheduler(client) == ["is unreachable"], "it says that the scheduler is away")
    stored.start()
    eventually(lambda: lines_about_the_scheduler(client)[1:] == ["is back"], "it says that the scheduler is back")
    assert model.held
    model.held.set()
    assert client.wait() == 0, client.errors
    assert wait.prints in client.output
    worker.stop()
    for one in (worker, client):
        assert lines_about_the_scheduler(one) == ["is unreachable", "is back"]


@pytest.fixture
def wire(scheduler: str) -> Iterator[Wire]:
    with closing(Wire(scheduler)) as wire:
        yield wire


def test_a_connection_lost_for_a_moment(sample: Callable[[str], Sample], model: ScriptedModel, wire: Wire) -> None:
    model.held = threading.Event()
    chain = sample("04")
    chain.start_worker()
    client = chain.start_client(ENDPOINT=wire.address)
    eventually(lambda: model.requests, "the model is asked")
    wire.cut()
    eventually(lambda: lines_about_the_scheduler(client) == ["is unreachable"], "it says that the scheduler is away")
    wire.mend()
    model.held.set()
    assert client.wait() == 0, client.errors
    assert "Improved:" in client.output
    assert lines_about_the_scheduler(client) == ["is unreachable", "is back"]


def test_a_scheduler_that_does_not_come_back(sample: Callable[[str], Sample], wire: Wire) -> None:
    client = sample("04").start_client("--timeout", "3", ENDPOINT=wire.address)
    client.wait_for("Orchestration: ")
    wire.cut()
    assert client.wait() == 2
    assert lines_about_the_scheduler(client) == ["is unreachable", "does not answer"]


# Single calls -----------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(scheduler: str, point_at: PointAt) -> Iterator[CallProxy]:
    """Stands between a sample's client and the scheduler, and can lose replies to what the scheduler has done."""
    with closing(CallProxy(scheduler)) as proxy:
        point_at(proxy.address)
        yield proxy


@pytest.fixture
def client(hosting: ModuleType, proxy: CallProxy) -> Iterator[DurableTaskSchedulerClient]:
    with hosting.scheduler_client() as client:
        yield client


def collect(context: task.OrchestrationContext, _: None) -> Any:
    """The words of its events, up to the word `end`."""
    words: list[str] = []
    while (word := (yield context.wait_for_external_event("word"))) != "end":
        words.append(word)
    return words


class Counter(DurableEntity):
    def add(self, amount: int) -> None:
        self.set_state(self.get_state(int, 0) + amount)


def attempts(proxy: CallProxy, method: str) -> int:
    """How often a call was made, all with the same id."""
    calls = proxy.calls(method)
    assert calls[0].request_id
    assert len({call.request_id for call in calls}) == 1
    return len(calls)


def test_a_start_whose_reply_is_lost(client: DurableTaskSchedulerClient, proxy: CallProxy) -> None:
    proxy.fail("StartInstance", UNAVAILABLE, times=2)
    instance = client.schedule_new_orchestration("collect")
    assert attempts(proxy, "StartInstance") == 3
    assert [state.instance_id for state in client.get_all_orchestration_states()] == [instance]


def test_an_event_whose_reply_is_lost(
    client: DurableTaskSchedulerClient, proxy: CallProxy, scheduler: str, hub: str
) -> None:
    instance = client.schedule_new_orchestration("collect")
    proxy.fail("RaiseEvent", UNAVAILABLE, times=2)
    client.raise_orchestration_event(instance, "word", data="once")
    assert attempts(proxy, "RaiseEvent") == 3
    client.raise_orchestration_event(instance, "word", data="end")
    with worker(scheduler, hub, collect):
        assert finished(client, instance).get_output() == ["once"]


def test_a_signal_whose_reply_is_lost(
    client: DurableTaskSchedulerClient, proxy: CallProxy, scheduler: str, hub: str
) -> None:
    counter = EntityInstanceId("counter", "1")
    proxy.fail("SignalEntity", UNAVAILABLE, times=2)
    client.signal_entity(counter, "add", 1)
    assert attempts(proxy, "SignalEntity") == 3
    client.signal_entity(counter, "add", 10)

    def total() -> int:
        entity = client.get_entity(counter)
        return int(entity.get_state() or 0) if entity else 0

    with worker(scheduler, hub, Counter):
        assert eventually(lambda: (found := total()) >= 11 and found, "both signals have arrived") == 11


def test_a_start_that_is_refused_the_second_time_as_by_dts(hosting: ModuleType, point_at: PointAt) -> None:
    with closing(CallProxy()) as dts:
        point_at(dts.address)
        with hosting.scheduler_client() as client:
            dts.fail("StartInstance", UNAVAILABLE)
            dts.fail("StartInstance", ALREADY_EXISTS)
            assert client.schedule_new_orchestration("any", instance_id="mine") == "mine"
            assert attempts(dts, "StartInstance") == 2

            dts.fail("StartInstance", ALREADY_EXISTS)
            with pytest.raises(grpc.RpcError, match="ALREADY_EXISTS"):
                client.schedule_new_orchestration("any", instance_id="mine")


def test_a_read_is_repeated_without_an_id(client: DurableTaskSchedulerClient, proxy: CallProxy) -> None:
    proxy.fail("GetEntity", UNAVAILABLE)
    assert client.get_entity(EntityInstanceId("counter", "1")) is None
    assert [call.request_id for call in proxy.calls("GetEntity")] == [None, None]


def test_an_error_that_is_no_outage_is_raised_immediately(client: DurableTaskSchedulerClient, proxy: CallProxy) -> None:
    proxy.fail("GetEntity", grpc.StatusCode.PERMISSION_DENIED)
    with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
        client.get_entity(EntityInstanceId("counter", "1"))
    assert len(proxy.calls("GetEntity")) == 1


def test_every_call_has_a_deadline_and_is_repeated_after_it(
    client: DurableTaskSchedulerClient, proxy: CallProxy, calls: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 9 < client_deadline(client, proxy) < 11
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.3)
    gate = threading.Event()
    proxy.hold("GetEntity", gate)
    assert client_deadline(client, proxy) < 1
    gate.set()
    assert len(proxy.calls("GetEntity")) == 3


def client_deadline(client: DurableTaskSchedulerClient, proxy: CallProxy) -> float:
    """Seconds that the latest attempt at a read had."""
    client.get_entity(EntityInstanceId("counter", "1"))
    return proxy.calls("GetEntity")[-1].seconds


def test_a_wait_keeps_its_own_deadline(client: DurableTaskSchedulerClient, proxy: CallProxy) -> None:
    instance = client.schedule_new_orchestration("collect")
    proxy.fail("WaitForInstanceCompletion", UNAVAILABLE)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        client.wait_for_orchestration_completion(instance, timeout=1.5)
    assert 1.4 < time.monotonic() - began < 2.5


def test_the_first_call_does_not_wait(hosting: ModuleType, point_at: PointAt) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else can take the port
        point_at(f"http://127.0.0.1:{closed.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            hosting.scheduler_client()
        assert time.monotonic() - began < 1


def test_an_outage_is_waited_for_as_long_as_the_caller_can(
    client: DurableTaskSchedulerClient, proxy: CallProxy, calls: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy.close()
    began = time.monotonic()
    with calls.waiting_at_most(2.5), pytest.raises(grpc.RpcError):
        client.get_entity(EntityInstanceId("counter", "1"))
    assert 2 < time.monotonic() - began < 4
    assert capfd.readouterr().err.count("The scheduler at ") == 1
