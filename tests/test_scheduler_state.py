"""The scheduler's state: what was acknowledged survives SIGKILL, and one line explains a file that cannot be used."""

import os
import resource
import shutil
import sqlite3
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
import pytest
from conftest import Process, Start, eventually
from durabletask import history, task
from durabletask.client import OrchestrationState, TaskHubGrpcClient
from durabletask.entities import DurableEntity, EntityInstanceId
from google.protobuf.wrappers_pb2 import StringValue
from raw_scheduler import RawScheduler, StoredScheduler
from task_hub import BEGINNING, SECOND, TaskHub, create_timer, finish, lock, new_events
from test_scheduler import connect, echo, finished, worker

from local_services.scheduler.store import VERSION

pytestmark = pytest.mark.xdist_group("scheduler_state")  # its services are started once

HUB = "survivors"


# What survives ----------------------------------------------------------------------------------------------------


def slow_activity(_: task.ActivityContext, __: Any) -> str:
    return "second"


def call_slow(context: task.OrchestrationContext, _: Any) -> Any:
    return (yield context.call_activity(slow_activity))


def wait_twice(context: task.OrchestrationContext, _: Any) -> Any:
    first = yield context.wait_for_external_event("first")
    return [first, (yield context.wait_for_external_event("second"))]


def sleep(context: task.OrchestrationContext, seconds: float) -> Any:
    yield context.create_timer(timedelta(seconds=seconds))
    return "woken"


def call_child(context: task.OrchestrationContext, child: str) -> Any:
    return (yield context.call_sub_orchestrator(wait_twice, instance_id=child))


def fail(_: task.OrchestrationContext, __: Any) -> None:
    raise ValueError("on purpose")


def note_under_lock(context: task.OrchestrationContext, word: str) -> Any:
    entity = EntityInstanceId("log", "locked")
    with (yield context.lock_entities([entity])):
        if word == "holder":
            yield context.wait_for_external_event("go")
        yield context.call_entity(entity, "add", word)


class Log(DurableEntity):
    def add(self, word: str) -> None:
        self.set_state([*self.get_state(list, []), word])


@dataclass
class Survived:
    """What there was before the scheduler was killed, and the scheduler that was then started on the same file."""

    address: str
    client: TaskHubGrpcClient
    raw: RawScheduler
    ids: dict[str, str] = field(default_factory=dict)
    states: dict[str, OrchestrationState | None] = field(default_factory=dict)
    histories: dict[str, list[history.HistoryEvent]] = field(default_factory=dict)
    entity: pb.EntityMetadata | None = None
    held: dict[str, pb.WorkItem] = field(default_factory=dict)
    signals: list[pb.SignalEntityRequest] = field(default_factory=list)

    def finished(self, name: str) -> OrchestrationState:
        """Its state, as soon as it has finished."""
        return finished(self.client, self.ids[name])

    def status(self, name: str) -> str:
        """The name of its status."""
        return self.raw.status(self.ids[name])


@pytest.fixture(scope="module", params=["normal", "full"])
def survived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survived]:
    processes: list[Process] = []

    def start(*command: Any) -> Process:
        processes.append(Process(*command))
        return processes[-1]

    scheduler = StoredScheduler(start, tmp_path_factory.mktemp("state") / "state.db", "--sync", request.param)
    registered = (wait_twice, sleep, call_child, fail, note_under_lock, echo, Log)
    with connect(scheduler.address, HUB) as client, RawScheduler(scheduler.address, HUB) as raw:
        survived = Survived(scheduler.address, client, raw)
        set_up(survived, registered)
        before = time.monotonic()
        scheduler.kill()
        while time.monotonic() < before + 1.5:  # what is due in a second is overdue after the restart
            time.sleep(0.05)
        scheduler.start()
        with worker(scheduler.address, HUB, *registered, call_slow, slow_activity):
            yield survived
    for process in processes:
        process.stop()
        assert process.errors == ""


def set_up(survived: Survived, registered: tuple[Any, ...]) -> None:
    """Bring a task hub into many states."""
    client, raw, ids = survived.client, survived.raw, survived.ids

    def schedule(name: str, orchestrator: str, **options: Any) -> str:
        ids[name] = client.schedule_new_orchestration(orchestrator, **options)
        return ids[name]

    def running(name: str) -> None:
        eventually(lambda: survived.status(name) == "RUNNING", f"{name} is running")

    with worker(survived.address, HUB, *registered):
        finished(client, schedule("finished", "echo", input="done", tags={"color": "red"}))
        finished(client, schedule("failed", "fail"))
        for name in ("waiting", "early", "suspended"):
            schedule(name, "wait_twice")
            running(name)
        schedule("asleep", "sleep", input=3600)
        running("asleep")
        schedule("parent", "call_child", input="the-child")
        eventually(lambda: raw.call("GetInstance", pb.GetInstanceRequest(instanceId="the-child")).exists, "its child")
        ids["child"] = "the-child"
        running("child")
        schedule("holder", "note_under_lock", input="holder")
        eventually(lambda: (raw.entity("@log@locked") or pb.EntityMetadata()).HasField("lockedBy"), "it has the lock")
        running("holder")
        schedule("follower", "note_under_lock", input="follower")
        running("follower")
        client.signal_entity(EntityInstanceId("log", "kept"), "add", "before")
        eventually(lambda: (raw.entity("@log@kept") or pb.EntityMetadata()).serializedState.value, "its state")
        survived.entity = raw.entity("@log@kept")
        schedule("terminated", "wait_twice")
        client.terminate_orchestration(ids["terminated"], output="enough")
        schedule("overdue", "sleep", input=1)
        running("overdue")
    # From here on no worker does anything, except for unfinished work.
    stream = raw.work(workItemFilters=pb.WorkItemFilters(orchestrations=[pb.OrchestrationFilter(name="call_slow")]))
    schedule("step", "call_slow")
    survived.held["step"] = stream.take()
    schedule("activity", "call_slow")
    item = stream.take()
    activities = raw.work(workItemFilters=pb.WorkItemFilters(activities=[pb.ActivityFilter(name="slow_activity")]))
    complete_step(raw, item, pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="slow_activity")))
    survived.held["activity"] = activities.take()

    client.raise_orchestration_event(ids["early"], "SECOND", data="early")
    client.suspend_orchestration(ids["suspended"])
    for event in ("first", "second"):
        client.raise_orchestration_event(ids["suspended"], event, data=event)
    schedule("pending", "echo", input="pending", tags={"color": "blue"})
    now = datetime.now(timezone.utc)
    schedule("scheduled", "echo", input="late", start_at=now + timedelta(hours=1))
    schedule("due", "echo", input="due", start_at=now + timedelta(seconds=1))
    log = EntityInstanceId("log", "waiting")
    for number in range(3):
        client.signal_entity(log, "add", str(number))
    client.signal_entity(EntityInstanceId("log", "delayed"), "add", "hour", signal_time=now + timedelta(hours=1))
    client.signal_entity(EntityInstanceId("log", "delayed"), "add", "second", signal_time=now + timedelta(seconds=1))
    signal = pb.SignalEntityRequest(instanceId="@log@repeated", name="add", requestId=uuid.uuid4().hex)
    signal.input.value = '"once"'
    raw.call("SignalEntity", signal)
    raw.call("SignalEntity", signal)
    survived.signals.append(signal)
    request = pb.CreateInstanceRequest(name="echo", input=StringValue(value='"repeated"'))
    ids["repeated"] = raw.call("StartInstance", request, "start-1").instanceId
    assert raw.call("StartInstance", request, "start-1").instanceId == ids["repeated"]
    event = pb.RaiseEventRequest(instanceId=ids["waiting"], name="first", input=StringValue(value='"once"'))
    raw.call("RaiseEvent", event, "event-1")
    raw.call("RaiseEvent", event, "event-1")
    for name in ("pending", "finished", "failed", "terminated", "waiting", "suspended"):
        survived.states[name] = client.get_orchestration_state(ids[name])
    for name in ("finished", "failed", "terminated", "waiting", "holder", "early"):
        survived.histories[name] = client.get_orchestration_history(ids[name])


def complete_step(raw: RawScheduler, item: pb.WorkItem, *actions: pb.OrchestratorAction) -> None:
    response = pb.OrchestratorResponse(
        instanceId=item.orchestratorRequest.instanceId, completionToken=item.completionToken, actions=actions
    )
    raw.call("CompleteOrchestratorTask", response)


@pytest.mark.parametrize("name", ["finished", "failed", "terminated"])
def test_what_has_finished_is_as_it_was(name: str, survived: Survived) -> None:
    assert survived.client.get_orchestration_state(survived.ids[name]) == survived.states[name]
    assert survived.client.get_orchestration_history(survived.ids[name]) == survived.histories[name]
    assert len(survived.histories[name]) >= 3


@pytest.mark.parametrize("name", ["holder", "early"])
def test_the_history_of_what_runs_is_as_it_was(name: str, survived: Survived) -> None:
    after = survived.client.get_orchestration_history(survived.ids[name])
    assert after[: len(survived.histories[name])] == survived.histories[name]
    assert survived.histories[name]


def test_what_was_pending_is_done(survived: Survived) -> None:
    before = survived.states["pending"]
    assert before
    assert before.runtime_status.name == "PENDING"
    state = survived.finished("pending")
    assert state.serialized_output == '"pending"'
    assert (state.created_at, state.serialized_input) == (before.created_at, before.serialized_input)
    assert survived.raw.state(survived.ids["pending"]).tags == {"color": "blue"}


def test_what_is_to_start_later_waits(survived: Survived) -> None:
    assert survived.status("scheduled") == "PENDING"
    start = survived.raw.state(survived.ids["scheduled"]).scheduledStartTimestamp.ToDatetime(timezone.utc)
    assert timedelta(minutes=50) < start - datetime.now(timezone.utc) < timedelta(hours=1)
    assert survived.client.get_orchestration_history(survived.ids["scheduled"]) == []


def test_what_was_to_start_meanwhile_starts_once(survived: Survived) -> None:
    assert survived.finished("due").serialized_output == '"due"'
    assert count(survived, "due", history.ExecutionStartedEvent) == 1


def count(survived: Survived, name: str, kind: type) -> int:
    return sum(isinstance(e, kind) for e in survived.client.get_orchestration_history(survived.ids[name]))


def test_an_overdue_timer_fires_once_and_another_waits(survived: Survived) -> None:
    assert survived.finished("overdue").serialized_output == '"woken"'
    assert count(survived, "overdue", history.TimerFiredEvent) == 1
    assert survived.status("asleep") == "RUNNING"


def test_an_activity_is_done_again_and_counts_once(survived: Survived) -> None:
    item = survived.held["activity"]
    late = pb.ActivityResponse(
        instanceId=item.activityRequest.orchestrationInstance.instanceId,
        taskId=item.activityRequest.taskId,
        completionToken=item.completionToken,
        result=StringValue(value='"first"'),
    )
    survived.raw.call("CompleteActivityTask", late)
    assert survived.finished("activity").serialized_output in ('"first"', '"second"')
    survived.raw.call("CompleteActivityTask", late)
    assert count(survived, "activity", history.TaskCompletedEvent) == 1


def test_a_step_is_done_again_and_counts_once(survived: Survived) -> None:
    complete_step(survived.raw, survived.held["step"], finish('"first"'))
    assert survived.finished("step").serialized_output == '"second"'
    assert count(survived, "step", history.ExecutionCompletedEvent) == 1


def test_events_that_came_early_are_kept(survived: Survived) -> None:
    survived.client.raise_orchestration_event(survived.ids["early"], "first", data="late")
    assert survived.finished("early").serialized_output == '["late", "early"]'


def test_an_event_of_a_repeated_call_counts_once(survived: Survived) -> None:
    event = pb.RaiseEventRequest(instanceId=survived.ids["waiting"], name="second", input=StringValue(value='"after"'))
    same = pb.RaiseEventRequest(instanceId=survived.ids["waiting"], name="first", input=StringValue(value='"once"'))
    survived.raw.call("RaiseEvent", same, "event-1")
    survived.raw.call("RaiseEvent", event, "event-2")
    assert survived.finished("waiting").serialized_output == '["once", "after"]'
    assert count(survived, "waiting", history.EventRaisedEvent) == 2


def test_a_repeated_start_is_recognised(survived: Survived) -> None:
    request = pb.CreateInstanceRequest(name="echo", input=StringValue(value='"repeated"'))
    assert survived.raw.call("StartInstance", request, "start-1").instanceId == survived.ids["repeated"]
    assert survived.raw.call("StartInstance", request, "start-2").instanceId != survived.ids["repeated"]


def test_a_repeated_signal_is_recognised(survived: Survived) -> None:
    survived.raw.call("SignalEntity", survived.signals[0])
    other = pb.SignalEntityRequest(instanceId="@log@repeated", name="add", requestId="other")
    other.input.value = '"twice"'
    survived.raw.call("SignalEntity", other)
    eventually(lambda: log_of(survived, "repeated") == '["once", "twice"]', "each counts once")


def log_of(survived: Survived, key: str) -> str | None:
    entity = survived.raw.entity(f"@log@{key}")
    return entity.serializedState.value if entity else None


def test_what_was_suspended_still_is_and_has_its_events(survived: Survived) -> None:
    assert survived.status("suspended") == "SUSPENDED"
    survived.client.resume_orchestration(survived.ids["suspended"])
    assert survived.finished("suspended").serialized_output == '["first", "second"]'


def test_a_child_still_has_its_parent(survived: Survived) -> None:
    for event in ("first", "second"):
        survived.client.raise_orchestration_event("the-child", event, data=event)
    assert survived.finished("parent").serialized_output == '["first", "second"]'


def test_an_entity_is_as_it_was_and_its_time_increases(survived: Survived) -> None:
    before = survived.entity
    assert before
    assert survived.raw.entity("@log@kept") == before
    survived.client.signal_entity(EntityInstanceId("log", "kept"), "add", "after")
    eventually(lambda: log_of(survived, "kept") == '["before", "after"]', "another word")
    after = survived.raw.entity("@log@kept")
    assert after
    assert after.lastModifiedTime.ToNanoseconds() > before.lastModifiedTime.ToNanoseconds()


def test_waiting_signals_are_done_in_their_order(survived: Survived) -> None:
    eventually(lambda: log_of(survived, "waiting") == '["0", "1", "2"]', "all three are done")


def test_a_delayed_signal_is_done_once_when_it_is_due(survived: Survived) -> None:
    eventually(lambda: log_of(survived, "delayed") == '["second"]', "what was due meanwhile is done")


def test_a_lock_is_still_held_and_goes_to_the_next(survived: Survived) -> None:
    locked = survived.raw.entity("@log@locked")
    assert locked
    assert locked.lockedBy.value == survived.ids["holder"]
    assert survived.status("follower") == "RUNNING"
    survived.client.raise_orchestration_event(survived.ids["holder"], "go")
    survived.finished("follower")
    assert log_of(survived, "locked") == '["holder", "follower"]'
    locked = survived.raw.entity("@log@locked")
    assert locked
    assert locked.lockedBy.value == ""


# Time -------------------------------------------------------------------------------------------------------------


def test_last_modified_increases_whatever_the_clock_does(tmp_path: Path) -> None:
    hub = TaskHub(str(tmp_path / "state.db"))
    seen: list[int] = []

    def change() -> None:
        worker = hub.connect()
        hub.signal("@e@1")
        hub.complete_batch(worker.take(), str(len(seen)))
        hub.disconnect(worker)
        entity = hub.entity("@e@1")
        assert entity
        assert entity.serializedState.value == str(len(seen))
        seen.append(entity.lastModifiedTime.ToMicroseconds())

    for jump in (0, 0, 10, -3600, 0, 86_400, -86_400):
        hub.now += jump * SECOND
        change()
        hub.restart()
        change()
    assert all(earlier < later for earlier, later in pairwise(seen)), seen
    assert seen[0] >= BEGINNING


@pytest.mark.parametrize("path", ["state.db", ""])
def test_an_overdue_timer_fires_once_after_several_restarts(path: str, tmp_path: Path) -> None:
    hub = TaskHub(path and str(tmp_path / path))
    hub.start("o", "one")
    worker = hub.connect()
    hub.complete(worker.take(), create_timer(1, hub.now + 60 * SECOND))
    hub.sleep(59)
    hub.restart()
    hub.now += 3600 * SECOND
    hub.restart()
    worker = hub.connect()
    hub.sleep(0)
    item = worker.take()
    assert new_events(item) == ["timerFired"]
    hub.restart()
    worker = hub.connect()
    hub.sleep(60)
    item = worker.take()
    assert new_events(item) == ["timerFired"]
    hub.complete(item)
    hub.restart()
    worker = hub.connect()
    hub.sleep(3600)
    assert not worker.items
    assert hub.history("one").count("timerFired") == 1


def test_a_lock_that_nobody_waits_for_opens_when_its_owner_ends_after_a_restart(tmp_path: Path) -> None:
    hub = TaskHub(str(tmp_path / "state.db"))
    hub.start("o", "owner")
    hub.complete(hub.connect().take(), lock(1, "section", "@e@1", "@e@2"))
    hub.restart()
    hub.call("TerminateInstance", pb.TerminateRequest(instanceId="owner"))
    worker = hub.connect()
    hub.signal("@e@1")
    hub.signal("@e@2")
    hub.sleep(2)
    assert len(worker.items) == 2


# Files that cannot be used ----------------------------------------------------------------------------------------


def refusal(process: Process, *words: str) -> str:
    """The one line with which it ended."""
    assert process.wait() == 2, process.output + process.errors
    assert process.output == ""
    assert process.errors.count("\n") == 1, process.errors
    for word in words:
        assert word in process.errors
    return process.errors


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def begin(start: Start, state: Path) -> Callable[..., Process]:
    """Starts a scheduler on the state file."""
    return lambda *options, file=state: start(
        sys.executable, "-m", "local_services.scheduler", "--port", "0", "--state", file, *options
    )


def used(start: Start, state: Path) -> StoredScheduler:
    """A scheduler with some orchestrations in its file."""
    scheduler = StoredScheduler(start, state)
    with RawScheduler(scheduler.address, HUB) as raw:
        for number in range(50):
            raw.start("echo", f"instance-{number}", input=StringValue(value="x" * 2000))
    return scheduler


def test_a_file_in_use_is_said_with_the_address(start: Start, state: Path, begin: Callable[..., Process]) -> None:
    scheduler = StoredScheduler(start, state)
    refusal(begin(), str(state), "in use", scheduler.address, "--state")
    other_name = state.with_name("link.db")
    other_name.symlink_to(state)
    refusal(begin(file=other_name), "in use", scheduler.address)
    with RawScheduler(scheduler.address, HUB) as raw:
        assert raw.start("echo")


def test_a_file_of_another_version_is_left_as_it_is(start: Start, state: Path, begin: Callable[..., Process]) -> None:
    used(start, state).process.stop()
    with closing(sqlite3.connect(state)) as file:
        file.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = state.read_bytes()
    refusal(begin(), str(state), f"version {VERSION + 1}", "--state")
    assert state.read_bytes() == before


def test_the_database_of_another_program_is_left_as_it_is(state: Path, begin: Callable[..., Process]) -> None:
    with closing(sqlite3.connect(state)) as file:
        file.execute("CREATE TABLE recipes (name TEXT)")
    before = state.read_bytes()
    refusal(begin(), str(state), "another program", "--state")
    assert state.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database " * 1000, b"x" * 50_000, b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_database_is_left_as_it_is(
    content: bytes, state: Path, begin: Callable[..., Process]
) -> None:
    state.write_bytes(content)
    refusal(begin(), str(state), "damaged", "Move it away")
    assert state.read_bytes() == content


@pytest.mark.parametrize("missing", ["folder", "is a folder", "is no folder"])
def test_a_path_that_cannot_be_is_said(missing: str, tmp_path: Path, begin: Callable[..., Process]) -> None:
    match missing:
        case "folder":
            refusal(begin(file=tmp_path / "missing" / "state.db"), "missing/state.db", "folder")
        case "is a folder":
            refusal(begin(file=tmp_path), str(tmp_path), "folder")
        case _:
            (tmp_path / "file").touch()
            refusal(begin(file=tmp_path / "file" / "state.db"), "file/state.db", "is a file")


@pytest.mark.parametrize(("what", "mode"), [("file", 0o400), ("folder", 0o500), ("unreadable file", 0o000)])
def test_what_may_not_be_written_is_said(what: str, mode: int, start: Start, state: Path) -> None:
    used(start, state).process.stop()
    before = state.read_bytes()
    target = state.parent if what == "folder" else state
    target.chmod(mode)
    try:
        command = (*obedient(), sys.executable, "-m", "local_services.scheduler", "--port", "0", "--state", state)
        refusal(start(*command), str(state), "hoose another file" if what != "unreadable file" else "may you read")
    finally:
        target.chmod(0o700)
    assert state.read_bytes() == before


def obedient() -> list[str]:
    """A prefix for a command that makes root obey the permissions of files, like other users."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may write everything")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.mark.parametrize("how", ["truncated", "zeros in the middle", "noise in the middle", "noise in a record"])
def test_a_damaged_file_is_said_and_left_as_it_is(how: str, start: Start, state: Path) -> None:
    scheduler = used(start, state)
    scheduler.process.stop()
    size = state.stat().st_size
    if how == "noise in a record":
        with closing(sqlite3.connect(state)) as file:
            file.execute("UPDATE messages SET event = x'a5a5a5a5a5'")
            file.commit()
    else:
        with state.open("r+b") as file:
            file.truncate(size // 2 if how == "truncated" else 4096 * 2)
            if how != "truncated":
                file.seek(4096 * 2)
                file.write((b"\0" if "zeros" in how else b"\xa5") * (size - 4096 * 2))
    before = state.read_bytes()
    process = scheduler.begin("--port", "0")
    eventually(lambda: process.popen.poll() is not None or "ready" in process.output, "it has started, or not")
    if process.popen.poll() is None:
        with RawScheduler(process.output.split()[-1], HUB) as raw:
            problem = refused(lambda number: raw.state(f"instance-{number}"))
        assert (problem.code(), "is damaged" in problem.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        process.stop()
        assert "Traceback" not in process.errors
    else:
        refusal(process, "damaged")
    if how == "noise in a record":
        with closing(sqlite3.connect(state)) as file:
            assert file.execute("SELECT count(*) FROM messages").fetchone() == (50,)
    else:
        assert state.read_bytes()[: len(before)] == before


def refused(call: Callable[[int], Any]) -> Any:
    """The error of a refused call, after a number of attempts."""
    with pytest.raises(grpc.RpcError) as problem:  # noqa: PT012
        for number in range(1000):
            call(number)
    return problem.value


# No room ----------------------------------------------------------------------------------------------------------

limited = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="another process's limits can be set on Linux")


@limited
def test_without_room_nothing_is_acknowledged_and_it_recovers(start: Start, state: Path) -> None:
    scheduler = StoredScheduler(start, state)
    process = scheduler.process
    acknowledged: list[str] = []
    with (
        connect(scheduler.address, HUB) as client,
        RawScheduler(scheduler.address, HUB) as raw,
        worker(scheduler.address, HUB, wait_twice, echo),
    ):
        waiting = client.schedule_new_orchestration("wait_twice")
        client.raise_orchestration_event(waiting, "first", data="before")
        eventually(lambda: raw.status(waiting) == "RUNNING", "it waits")
        fill(process, state)
        problem = refused(
            lambda number: acknowledged.append(raw.start("echo", f"n-{number}", input=StringValue(value='"x"')))
        )
        assert (problem.code(), "Make room" in problem.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        with pytest.raises(grpc.RpcError, match="Make room"):
            client.raise_orchestration_event(waiting, "second", data="lost")
        assert raw.status(waiting) == "RUNNING", "calls that only read are answered"
        assert not raw.call("GetInstance", pb.GetInstanceRequest(instanceId=f"n-{len(acknowledged)}")).exists

        make_room(process)
        client.raise_orchestration_event(waiting, "second", data="after")
        assert finished(client, waiting).serialized_output == '["before", "after"]'
        for instance in acknowledged:
            assert finished(client, instance).serialized_output == '"x"'
    first, second = process.errors.splitlines()
    assert first.startswith("Not stored: ")
    assert "Make room" in first
    assert second == "The state can be stored again."
    scheduler.restart()
    with RawScheduler(scheduler.address, HUB) as raw:
        assert {raw.status(instance) for instance in acknowledged} == {"COMPLETED"}


@limited
def test_a_worker_that_leaves_while_there_is_no_room_gets_nothing_more(start: Start, state: Path) -> None:
    scheduler = StoredScheduler(start, state)
    with RawScheduler(scheduler.address, HUB) as raw, connect(scheduler.address, HUB) as client:
        instances = [client.schedule_new_orchestration("echo", input="x") for _ in range(5)]
        leaving = raw.work()
        leaving.take()
        fill(scheduler.process, state, room=0)
        refused(lambda number: raw.start("echo"))
        leaving.end()
        with pytest.raises(grpc.RpcError):
            client.raise_orchestration_event(instances[0], "anything")  # it has noticed that the worker has left
        make_room(scheduler.process)
        with worker(scheduler.address, HUB, echo):
            instances += [client.schedule_new_orchestration("echo", input="x") for _ in range(5)]
            for instance in instances:
                assert finished(client, instance).serialized_output == '"x"'


def fill(process: Process, state: Path, room: int = 400_000) -> None:
    """Make a scheduler's disk full after this number of bytes."""
    written = max(path.stat().st_size for path in state.parent.iterdir())
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (written + room, resource.RLIM_INFINITY))


def make_room(process: Process) -> None:
    """Let it write again, and wait until it says so."""
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    eventually(lambda: "can be stored again" in process.errors, "it recovers by itself")


@limited
def test_no_room_at_the_start_is_said(start: Start, state: Path) -> None:
    used(start, state).process.stop()
    before = state.read_bytes()
    command = ("-m", "local_services.scheduler", "--port", "0", "--state", state)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); os.execv(sys.argv[1], sys.argv[1:])"
    program = ("-c", f"import os, resource, sys; {limit}", sys.executable, *command)
    refusal(start(sys.executable, *program), str(state), "Make room")
    assert state.read_bytes() == before


# Smaller files, permissions, taking over ---------------------------------------------------------------------------


def test_purge_gives_its_space_back(start: Start, state: Path) -> None:
    scheduler = StoredScheduler(start, state)
    with RawScheduler(scheduler.address, HUB) as raw:
        for number in range(6):
            raw.start("echo", f"n-{number}", input=StringValue(value="x" * 1_000_000))
            raw.call("TerminateInstance", pb.TerminateRequest(instanceId=f"n-{number}"))
        assert state_size(state) > 6_000_000
        purge = pb.PurgeInstancesRequest(purgeInstanceFilter=pb.PurgeInstanceFilter())
        assert raw.call("PurgeInstances", purge).deletedInstanceCount == 6
        eventually(lambda: state_size(state) < 2_000_000, "the file becomes small again")
        assert raw.start("echo")


def state_size(state: Path) -> int:
    """Bytes of the state file and of SQLite's other files."""
    return sum(path.stat().st_size for path in state.parent.iterdir())


def test_what_has_finished_or_is_at_rest_is_not_held_in_memory(tmp_path: Path) -> None:
    hub = TaskHub(str(tmp_path / "state.db"))
    worker = hub.connect()
    for number in range(300):
        hub.start("o", f"n-{number}")
        hub.complete(worker.take(), finish())
        hub.signal(f"@e@{number}")
        hub.complete_batch(worker.take(), "state")
    hub.start("o", "running")
    assert list(hub.hub.orchestrations.live) == ["running"]
    hub.restart()
    assert list(hub.hub.orchestrations.live) == ["running"]
    assert not hub.hub.entities._idle
    assert not hub.hub.entities._busy
    assert (hub.status("n-299"), hub.status("running")) == ("COMPLETED", "PENDING")


def test_the_state_is_its_owners_alone(start: Start, state: Path) -> None:
    scheduler = used(start, state)
    scheduler.kill()
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.parent.iterdir()}
    assert {"state.db", "state.db.lock", "state.db-wal"} <= files.keys()
    assert set(files.values()) == {0o600}


def test_a_standby_takes_over_at_the_same_address(start: Start, state: Path) -> None:
    first = StoredScheduler(start, state, "--share")
    second = first.begin("--port", "0")
    assert second.wait_for(r"ready: (\S+)\n")[1] == first.address
    with connect(first.address, HUB) as client:
        instance = client.schedule_new_orchestration("echo", input="kept")
        first.kill()
        second_is_up = f"this one continues at {first.address}"
        eventually(lambda: second_is_up in second.errors, "it says that it takes over")
        with RawScheduler(first.address, HUB) as raw:
            assert raw.status(instance) == "PENDING"  # this waits until it listens
        with worker(first.address, HUB, echo):
            assert finished(client, instance).serialized_output == '"kept"'
    second.stop()
    assert second.popen.returncode == 0
    assert second.errors.count("\n") == 1


def test_a_standby_that_is_told_to_stop_does(start: Start, state: Path) -> None:
    first = StoredScheduler(start, state, "--share")
    second = first.begin("--port", "0")
    second.wait_for("ready")
    second.stop()
    assert second.popen.returncode == 0
    with RawScheduler(first.address, HUB) as raw:
        assert raw.start("echo")
    assert second.errors == ""
