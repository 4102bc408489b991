"""Work without a result: abandoned, lost with its worker, answered wrongly, or not needed any more."""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
import pytest
from conftest import Start, eventually
from durabletask import history, task
from durabletask.entities import EntityInstanceId
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from raw_scheduler import RawScheduler
from task_hub import (
    BEGINNING,
    SECOND,
    PlayedWorker,
    TaskHub,
    call_activity,
    call_child,
    call_entity,
    finish,
    new_events,
)
from test_scheduler import Durable, connect, echo, finished, worker

from local_services.scheduler.records import Refused
from local_services.scheduler.service import Scheduler
from local_services.scheduler.store import Store
from local_services.service import StopOrder
from runner.prove.wire import Wire

PAUSES = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


@pytest.fixture
def hub() -> TaskHub:
    return TaskHub()


def orchestration_waits(hub: TaskHub, **fields: Any) -> str:
    return hub.start("o", "one", **fields)


def activity_waits(hub: TaskHub, **fields: Any) -> str:
    instance = hub.start("o", "one", **fields)
    worker = hub.connect(only(orchestrations=["o"]))
    hub.complete(worker.take(), call_activity(1))
    hub.disconnect(worker)
    return instance


def operation_waits(hub: TaskHub, **fields: Any) -> str:
    instance = hub.start("o", "one", **fields)
    worker = hub.connect(only(orchestrations=["o"]))
    hub.complete(worker.take(), call_entity(1, "@e@1"))
    hub.disconnect(worker)
    return instance


def only(
    orchestrations: list[str] | None = None, activities: list[str] | None = None, entities: list[str] | None = None
) -> pb.WorkItemFilters:
    return pb.WorkItemFilters(
        orchestrations=[pb.OrchestrationFilter(name=name) for name in orchestrations or ()],
        activities=[pb.ActivityFilter(name=name) for name in activities or ()],
        entities=[pb.EntityFilter(name=name) for name in entities or ()],
    )


EACH_KIND = pytest.mark.parametrize("waits", [orchestration_waits, activity_waits, operation_waits])
Waits = Callable[..., str]


def ends_well(hub: TaskHub, worker: PlayedWorker) -> None:
    """The worker does all work that it receives, until there is no more."""
    while worker.items:
        item = worker.take()
        if item.HasField("entityRequest"):
            hub.complete_batch(item, "1")
        elif item.HasField("activityRequest"):
            hub.complete(item, '"result"')
        else:
            hub.complete(item, finish())


# Abandoned --------------------------------------------------------------------------------------------------------


@EACH_KIND
def test_abandoned_work_comes_back_after_growing_pauses(waits: Waits, hub: TaskHub) -> None:
    instance = waits(hub)
    worker = hub.connect()
    for pause in PAUSES:
        hub.abandon(worker.take())
        hub.sleep(pause - 0.001)
        assert not worker.items, f"not before {pause} s"
        hub.sleep(0.001)
        assert len(worker.items) == 1, f"after {pause} s"
    ends_well(hub, worker)
    assert hub.status(instance) == "COMPLETED"


@EACH_KIND
def test_abandoned_work_is_offered_to_another_first(waits: Waits, hub: TaskHub) -> None:
    waits(hub)
    first = hub.connect()
    second = hub.connect()
    hub.abandon(first.take())
    hub.sleep(0.1)
    assert (len(first.items), len(second.items)) == (0, 1)
    hub.abandon(second.take())
    hub.sleep(0.2)
    assert (len(first.items), len(second.items)) == (1, 0)


@EACH_KIND
def test_abandoned_work_is_offered_at_once_to_a_worker_that_comes(waits: Waits, hub: TaskHub) -> None:
    waits(hub)
    first = hub.connect()
    for pause in PAUSES[:8]:
        hub.abandon(first.take())
        hub.sleep(pause)
    hub.abandon(first.take())
    second = hub.connect()
    assert (len(first.items), len(second.items)) == (0, 1)


@EACH_KIND
def test_what_is_abandoned_again_and_again_fails_with_the_reason(waits: Waits, hub: TaskHub) -> None:
    instance = waits(hub)
    worker = hub.connect()
    began, abandoned = hub.now, 0
    while worker.items and hub.now - began < 3600 * SECOND:
        hub.abandon(worker.take())
        abandoned += 1
        if any(new_events(item) in (["taskFailed"], ["entityOperationFailed"]) for item in worker.items):
            break  # the caller sees the failure
        hub.sleep(30)
    assert 600 <= (hub.now - began) / SECOND <= 630
    if waits is orchestration_waits:
        failure = hub.failure(instance)
        assert hub.status(instance) == "FAILED"
    else:
        (event,) = (
            event for event in worker.take().orchestratorRequest.newEvents if not event.HasField("orchestratorStarted")
        )
        failed = event.taskFailed if waits is activity_waits else event.entityOperationFailed
        assert failed.failureDetails.isNonRetriable
        failure = failed.failureDetails.errorMessage
    assert failure == f"Its workers abandoned it {abandoned} times in 10 minutes. Their logs say why."


def test_many_abandons_in_a_short_time_are_no_failure(hub: TaskHub) -> None:
    """Workers that restart many times receive the work many times."""
    instance = orchestration_waits(hub)
    while hub.now - BEGINNING < 590 * SECOND:
        worker = hub.connect()
        hub.abandon(worker.take())
        hub.disconnect(worker)
        hub.sleep(5)
    ends_well(hub, hub.connect())
    assert hub.status(instance) == "COMPLETED"


def test_a_rare_abandon_is_no_failure(hub: TaskHub) -> None:
    instance = orchestration_waits(hub)
    for _ in range(9):
        worker = hub.connect()
        hub.abandon(worker.take())
        hub.disconnect(worker)
        hub.sleep(400)
    ends_well(hub, hub.connect())
    assert hub.status(instance) == "COMPLETED"


def test_after_a_finished_step_counting_begins_anew(hub: TaskHub) -> None:
    instance = orchestration_waits(hub)
    worker = hub.connect(only(orchestrations=["o"]))
    for name in ("first", "second", "third"):
        for _ in range(15):
            hub.abandon(worker.take())
            hub.sleep(30)
        hub.complete(worker.take())
        hub.event(instance, name)
    assert hub.status(instance) == "RUNNING"


def test_abandoned_work_that_nobody_needs_any_more_does_not_come_back(hub: TaskHub) -> None:
    instance = activity_waits(hub)
    worker = hub.connect()
    hub.abandon(worker.take())
    hub.call("TerminateInstance", pb.TerminateRequest(instanceId=instance))
    hub.call("PurgeInstances", pb.PurgeInstancesRequest(instanceId=instance))
    hub.sleep(3600)
    assert not worker.items


@pytest.mark.parametrize("lost", ["abandoned", "its worker died"])
def test_a_step_that_fails_to_come_back_waits_while_its_orchestration_is_suspended(lost: str, hub: TaskHub) -> None:
    instance = orchestration_waits(hub)
    worker = hub.connect()
    item = worker.take()
    hub.call("SuspendInstance", pb.SuspendRequest(instanceId=instance))
    if lost == "abandoned":
        hub.abandon(item)
    else:
        hub.disconnect(worker)
        worker = hub.connect()
    hub.sleep(60)
    assert not worker.items
    assert hub.status(instance) == "SUSPENDED"
    hub.call("ResumeInstance", pb.ResumeRequest(instanceId=instance))
    ends_well(hub, worker)
    assert hub.status(instance) == "COMPLETED"


def test_what_cannot_be_delivered_has_its_caller_told_at_once(hub: TaskHub) -> None:
    """The child's turn comes after all work with its parent's name, and adds more work with that name."""
    for instance in ("parent", "another", "a third"):
        hub.start("parent", instance)
    first = hub.connect(only(orchestrations=["parent"]), maxConcurrentOrchestrationWorkItems=1)
    hub.complete(first.take(), call_child(1, "child", "child"))
    hub.disconnect(first)
    for number in range(280):
        hub.event("child", f"event {number}", json.dumps("x" * 16_000))
    worker = hub.connect()
    assert hub.status("child") == "FAILED"
    assert "a worker receives 4,194,304 at most" in hub.failure("child")
    step = next(item for item in worker.items if item.orchestratorRequest.instanceId == "parent")
    assert new_events(step) == ["subOrchestrationInstanceFailed"]


# Versions ---------------------------------------------------------------------------------------------------------


def test_a_version_that_a_worker_rejects_is_no_failure_of_the_work(hub: TaskHub) -> None:
    """The worker only says that it abandons; no worker has finished a step of this version yet."""
    instance = orchestration_waits(hub, version="2.0")
    old = hub.connect()
    for _ in range(60):
        hub.abandon(old.take())
        hub.sleep(30)
    assert hub.status(instance) == "PENDING"
    new = hub.connect()
    hub.abandon(old.take())
    hub.sleep(30)
    ends_well(hub, new)
    assert hub.status(instance) == "COMPLETED"


def test_who_has_finished_a_step_of_a_version_does_not_reject_it(hub: TaskHub) -> None:
    able = hub.connect()
    hub.start("o", "before", version="2.0")
    hub.complete(able.take(), finish())
    instance = orchestration_waits(hub, version="2.0")
    while able.items and hub.now - BEGINNING < 3600 * SECOND:
        hub.abandon(able.take())
        hub.sleep(30)
    assert hub.status(instance) == "FAILED"


# Dead workers -----------------------------------------------------------------------------------------------------


@EACH_KIND
def test_forty_nine_dead_workers_are_no_failure_and_fifty_are(waits: Waits, hub: TaskHub) -> None:
    instance = waits(hub)
    for _ in range(49):
        worker = hub.connect()
        worker.take()
        hub.disconnect(worker)
    survivor = hub.connect()
    ends_well(hub, survivor)
    assert hub.status(instance) == "COMPLETED"
    hub.disconnect(survivor)
    hub.call("PurgeInstances", pb.PurgeInstancesRequest(instanceId=instance))

    waits(hub)
    for _ in range(50):
        worker = hub.connect()
        worker.take()
        hub.disconnect(worker)
    if waits is not orchestration_waits:
        worker = hub.connect()
        item = worker.take()
        assert new_events(item) in (["taskFailed"], ["entityOperationFailed"])
        assert "50 workers in a row" in str(item.orchestratorRequest.newEvents)
    else:
        assert hub.status(instance) == "FAILED"
        assert "50 workers in a row" in hub.failure(instance)


@EACH_KIND
def test_work_of_a_stream_that_ended_goes_to_another_at_once(waits: Waits, hub: TaskHub) -> None:
    waits(hub)
    first = hub.connect()
    second = hub.connect()
    late = first.take()
    hub.disconnect(first)
    assert len(second.items) == 1
    if late.HasField("entityRequest"):
        hub.complete_batch(late, "late")
        entity = hub.entity("@e@1")
        assert not entity or not entity.serializedState.value
    else:
        hub.complete(late, finish('"late"') if late.HasField("orchestratorRequest") else '"late"')
    assert len(second.items) == 1, "a late completion changes nothing"
    ends_well(hub, second)
    assert hub.status("one") == "COMPLETED"


# Completions for other work ---------------------------------------------------------------------------------------


def other_instance(item: pb.WorkItem) -> tuple[str, Any]:
    if item.HasField("activityRequest"):
        return "CompleteActivityTask", pb.ActivityResponse(
            instanceId="two", taskId=item.activityRequest.taskId, completionToken=item.completionToken
        )
    return "CompleteOrchestratorTask", pb.OrchestratorResponse(
        instanceId="two", completionToken=item.completionToken, actions=[finish()]
    )


def other_kind(item: pb.WorkItem) -> tuple[str, Any]:
    if item.HasField("orchestratorRequest"):
        return "CompleteActivityTask", pb.ActivityResponse(instanceId="one", completionToken=item.completionToken)
    return "CompleteOrchestratorTask", pb.OrchestratorResponse(
        instanceId="one", completionToken=item.completionToken, actions=[finish()]
    )


def other_task(item: pb.WorkItem) -> tuple[str, Any]:
    return "CompleteActivityTask", pb.ActivityResponse(
        instanceId="one", taskId=item.activityRequest.taskId + 1, completionToken=item.completionToken
    )


@pytest.mark.parametrize(
    ("waits", "wrong"),
    [
        (orchestration_waits, other_instance),
        (orchestration_waits, other_kind),
        (activity_waits, other_instance),
        (activity_waits, other_kind),
        (activity_waits, other_task),
        (operation_waits, other_kind),
    ],
)
def test_a_completion_for_other_work_than_its_token_counts_for_neither_and_hangs_neither(
    waits: Waits, wrong: Callable[[pb.WorkItem], tuple[str, Any]], hub: TaskHub
) -> None:
    waits(hub)
    hub.start("o", "two")
    worker = hub.connect()
    mine = next(item for item in worker.items if item.orchestratorRequest.instanceId != "two")
    with pytest.raises(Refused, match="belongs to other work"):
        hub.call(*wrong(mine))
    worker.items.remove(mine)
    hub.sleep(1)
    ends_well(hub, worker)
    assert (hub.status("one"), hub.status("two")) == ("COMPLETED", "COMPLETED")
    assert hub.history("one").count("taskCompleted") <= 1


def test_a_completion_with_an_unknown_token_is_ignored(hub: TaskHub) -> None:
    orchestration_waits(hub)
    worker = hub.connect()
    response = pb.OrchestratorResponse(instanceId="one", completionToken="made up", actions=[finish()])
    hub.call("CompleteOrchestratorTask", response)
    assert hub.status("one") == "PENDING"
    ends_well(hub, worker)
    assert hub.status("one") == "COMPLETED"


def test_a_completion_counts_once(hub: TaskHub) -> None:
    activity_waits(hub)
    worker = hub.connect()
    item = worker.take()
    hub.complete(item, '"first"')
    hub.complete(item, '"second"')
    step = worker.take()
    assert new_events(step) == ["taskCompleted"]
    hub.complete(step)
    hub.complete(step, finish('"twice"'))
    assert hub.status("one") == "RUNNING"
    assert hub.history("one").count("taskCompleted") == 1


# What is too long -------------------------------------------------------------------------------------------------

LONG = "x" * 1025


@pytest.mark.parametrize(
    ("method", "request_", "named"),
    [
        ("StartInstance", pb.CreateInstanceRequest(name="o", instanceId=LONG), "instance id"),
        ("StartInstance", pb.CreateInstanceRequest(name=LONG), "orchestration's name"),
        ("StartInstance", pb.CreateInstanceRequest(), "orchestration's name is empty"),
        ("StartInstance", pb.CreateInstanceRequest(name="o", instanceId="@o@1"), "cannot begin with '@'"),
        ("StartInstance", pb.CreateInstanceRequest(name="o", tags={LONG: "value"}), "tag's name"),
        ("StartInstance", pb.CreateInstanceRequest(name="o", tags={"name": LONG}), "tag's value"),
        ("StartInstance", pb.CreateInstanceRequest(name="o", tags={str(n): "" for n in range(101)}), "101 tags"),
        ("StartInstance", pb.CreateInstanceRequest(name="o", version={"value": LONG}), "version"),
        ("RaiseEvent", pb.RaiseEventRequest(instanceId="one", name=LONG), "event's name"),
        ("SignalEntity", pb.SignalEntityRequest(instanceId=f"@e@{LONG}", name="run"), "entity's id"),
        ("SignalEntity", pb.SignalEntityRequest(instanceId="e", name="run"), "@name@key"),
        ("SignalEntity", pb.SignalEntityRequest(instanceId="@e@1", name=LONG), "operation's name"),
        ("SignalEntity", pb.SignalEntityRequest(instanceId="@e@1", name="run", requestId=LONG), "request's id"),
    ],
)
def test_what_is_too_long_or_empty_is_refused_by_name(method: str, request_: Any, named: str, hub: TaskHub) -> None:
    hub.start("o", "one")
    with pytest.raises(Refused, match=named) as refused:
        hub.call(method, request_)
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (call_activity(1, LONG), "activity's name"),
        (call_activity(1, ""), "activity's name is empty"),
        (call_entity(1, "e"), "@name@key"),
        (pb.OrchestratorAction(id=1), "unknown"),
    ],
)
def test_a_step_that_asks_for_the_impossible_fails_by_name(
    action: pb.OrchestratorAction, named: str, hub: TaskHub
) -> None:
    instance = orchestration_waits(hub)
    hub.complete(hub.connect().take(), action)
    assert hub.status(instance) == "FAILED"
    assert named in hub.failure(instance)


def test_a_failure_as_long_as_a_book_can_still_be_read(hub: TaskHub) -> None:
    """A client with default options receives 4 MB."""
    details = pb.TaskFailureDetails(errorType="ValueError", errorMessage="x" * 5_000_000)
    details.stackTrace.value = "y" * 5_000_000
    details = pb.TaskFailureDetails(errorType="E", errorMessage="x" * 5_000_000, innerFailure=details)
    instance = orchestration_waits(hub)
    ending = pb.CompleteOrchestrationAction(orchestrationStatus=pb.ORCHESTRATION_STATUS_FAILED, failureDetails=details)
    worker = hub.connect()
    hub.complete(worker.take(), pb.OrchestratorAction(id=1, completeOrchestration=ending))
    assert hub.status(instance) == "FAILED"
    state = hub.state(instance)
    assert state
    assert state.ByteSize() < 1_000_000
    assert state.failureDetails.errorMessage.startswith("xxx")
    assert "9,999" not in state.failureDetails.errorMessage

    caller = hub.start("o", "caller")
    hub.complete(worker.take(), call_activity(1))
    hub.complete(worker.take(), failureDetails=details)
    item = worker.take()
    assert new_events(item) == ["taskFailed"]
    assert item.ByteSize() < 1_000_000
    hub.complete(item, finish())
    assert hub.status(caller) == "COMPLETED"


# Real processes ---------------------------------------------------------------------------------------------------


def test_fifteen_kills_during_one_turn_are_no_failure(start: Start, scheduler: str, tmp_path: Path) -> None:
    durable = Durable(start, scheduler, "kills", tmp_path)
    with connect(scheduler, "kills") as client, RawScheduler(scheduler, "kills") as raw:
        client.signal_entity(EntityInstanceId("counter", "one"), "add", 1)
        instance = client.schedule_new_orchestration("call_activity", input="word")
        for number in range(15):
            worker = durable.start()
            eventually(
                lambda number=number: (durable.begun("entity 1"), durable.begun("activity word")) == (number + 1,) * 2,
                "both have begun again",
            )
            worker.kill()
        durable.open_gate()
        durable.start()
        assert finished(client, instance).serialized_output == '"WORD"'
        eventually(lambda: (raw.entity("@counter@one") or pb.EntityMetadata()).serializedState.value == "1", "counted")
        assert (durable.begun("entity 1"), durable.begun("activity word")) == (16, 16)


def test_a_workers_call_whose_answer_was_lost_may_be_repeated(scheduler: str) -> None:
    """The scheduler dies after it has stored a result, and before the worker sees that: the result counts once."""
    with RawScheduler(scheduler, "repeated") as raw:
        stream = raw.work()

        def take(kind: str) -> pb.WorkItem:
            item = stream.take()
            assert item.HasField(kind), item  # type: ignore[arg-type]
            return item

        def twice(method: str, request: Any) -> None:
            for _ in range(2):
                raw.call(method, request, method + request.completionToken)

        def step_done(*actions: pb.OrchestratorAction) -> None:
            token = take("orchestratorRequest").completionToken
            response = pb.OrchestratorResponse(instanceId=instance, completionToken=token, actions=actions)
            twice("CompleteOrchestratorTask", response)

        instance = raw.start("o")
        twice(
            "AbandonTaskOrchestratorWorkItem",
            pb.AbandonOrchestrationTaskRequest(completionToken=take("orchestratorRequest").completionToken),
        )
        step_done(call_activity(1))
        token = take("activityRequest").completionToken
        twice("AbandonTaskActivityWorkItem", pb.AbandonActivityTaskRequest(completionToken=token))
        token = take("activityRequest").completionToken
        twice("CompleteActivityTask", pb.ActivityResponse(instanceId=instance, taskId=1, completionToken=token))
        step_done(finish())
        assert raw.status(instance) == "COMPLETED"
        assert sum(event.HasField("taskCompleted") for event in raw.history(instance)) == 1

        raw.call("SignalEntity", pb.SignalEntityRequest(instanceId="@e@1", name="run", requestId="1"))
        token = take("entityRequest").completionToken
        twice("AbandonTaskEntityWorkItem", pb.AbandonEntityTaskRequest(completionToken=token))
        token = take("entityRequest").completionToken
        result = pb.EntityBatchResult(completionToken=token, results=[pb.OperationResult()])
        result.entityState.value = "1"
        twice("CompleteEntityTask", result)
        entity = raw.entity("@e@1")
        assert entity
        assert entity.serializedState.value == "1"
        stream.end()


def test_what_no_worker_can_send_fails_with_the_reason_and_is_not_tried_all_the_time(start: Start) -> None:
    """The failure of this orchestration contains half a surrogate pair, which a gRPC message cannot contain."""
    ten_minutes_are_three_seconds = "work.ABANDONED_FOR, work.LONGEST_PAUSE = 3_000_000, 400_000"
    begun: list[str] = []

    def poisonous(_: task.OrchestrationContext, name: str) -> None:
        begun.append(name)
        raise ValueError("half a character: \ud83d")

    def poisonous_activity(_: task.ActivityContext, name: str) -> str:
        begun.append(name)
        raise ValueError("half a character: \ud83d")

    def caller(context: task.OrchestrationContext, name: str) -> Any:
        yield context.call_activity(poisonous_activity, input=name)

    process = start(
        sys.executable,
        "-c",
        f"import sys; from local_services.scheduler import __main__, work; {ten_minutes_are_three_seconds}; "
        "sys.argv[1:] = ['--port', '0']; __main__.main()",
    )
    address = process.wait_for(r"ready: (\S+)")[1]
    with connect(address, "poison") as client, worker(address, "poison", poisonous, caller, poisonous_activity, echo):
        for orchestrator in ("poisonous", "caller"):
            began = time.monotonic()
            instance = client.schedule_new_orchestration(orchestrator, input=orchestrator)
            assert finished(client, client.schedule_new_orchestration("echo", input="fine")).serialized_output
            state = finished(client, instance)
            assert state.runtime_status.name == "FAILED"
            assert state.failure_details
            assert "Its workers abandoned it" in state.failure_details.message
            assert 3 < time.monotonic() - began < 20
            assert 10 <= begun.count(orchestrator) < 20
    assert process.errors == ""


@pytest.mark.long
@pytest.mark.parametrize("how", ["frozen", "silent"])
def test_a_worker_that_says_nothing_any_more_loses_its_work_to_another(
    how: str, start: Start, scheduler: str, tmp_path: Path
) -> None:
    hub = f"quiet-{how}"
    durable = Durable(start, scheduler, hub, tmp_path)
    wire = Wire(scheduler)
    quiet = Durable(start, wire.address, hub, tmp_path).start()
    with connect(scheduler, hub) as client:
        instances = [client.schedule_new_orchestration("call_activity", input="before") for _ in range(3)]
        eventually(lambda: durable.begun("activity before") == 3, "it has begun them")
        able = durable.start()
        if how == "frozen":
            quiet.signal(signal.SIGSTOP)
        else:
            wire.silence()
        durable.open_gate()
        instances += [client.schedule_new_orchestration("call_activity", input="after") for _ in range(6)]
        began = time.monotonic()
        for instance in instances:
            state = finished(client, instance)
            assert state.serialized_output in ('"BEFORE"', '"AFTER"')
        assert time.monotonic() - began < 40
        assert durable.begun("activity before") == 6, "the other has begun them again"
        if how == "frozen":
            quiet.signal(signal.SIGCONT)
            able.kill()
            again = [client.schedule_new_orchestration("call_activity", input="again") for _ in range(3)]
            assert {finished(client, instance).serialized_output for instance in again} == {'"AGAIN"'}
        for instance in instances:
            events = client.get_orchestration_history(instance)
            assert sum(isinstance(event, history.TaskCompletedEvent) for event in events) == 1
    wire.close()


def test_waiting_timers_and_clients_hold_no_thread(start: Start) -> None:
    def threads() -> int:
        return len(list(Path(f"/proc/{process.popen.pid}/task").iterdir()))

    def sleep(context: task.OrchestrationContext, _: Any) -> Any:
        yield context.create_timer(timedelta(hours=1))

    process = start(sys.executable, "-m", "local_services.scheduler", "--port", "0")
    address = process.wait_for(r"ready: (\S+)")[1]
    with connect(address, "timers") as client, RawScheduler(address, "timers") as raw:
        with worker(address, "timers", sleep, echo):
            finished(client, client.schedule_new_orchestration("echo", input="warm"))
            before = threads()
            for number in range(300):
                client.schedule_new_orchestration("sleep", instance_id=f"sleep-{number}")
            eventually(lambda: all(raw.status(f"sleep-{number}") == "RUNNING" for number in range(300)), "all wait")
        waits = [
            raw.call_later("WaitForInstanceCompletion", pb.GetInstanceRequest(instanceId=f"sleep-{number}"))
            for number in range(300)
        ]
        assert raw.status("sleep-0") == "RUNNING"
        assert threads() <= before + 5
        for wait in waits:
            wait.cancel()


def test_two_thousand_orchestrations_and_a_thousand_waiting_clients_at_the_same_time(start: Start) -> None:
    process = start(sys.executable, "-m", "local_services.scheduler", "--port", "0")
    scheduler = process.wait_for(r"ready: (\S+)")[1]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawScheduler(scheduler, "crowd")) for _ in range(50)]  # 50 connections
        for client in clients:
            client.call("Hello", Empty())
        process.signal(signal.SIGSTOP)  # so that all calls are waiting when it continues
        starts = [
            clients[number % 50].call_later(
                "StartInstance",
                pb.CreateInstanceRequest(name="echo", instanceId=f"n-{number}", input=StringValue(value=str(number))),
            )
            for number in range(2000)
        ]
        process.signal(signal.SIGCONT)
        assert {start.result(60).instanceId for start in starts} == {f"n-{number}" for number in range(2000)}
        waits = [
            clients[number % 50].call_later(
                "WaitForInstanceCompletion",
                pb.GetInstanceRequest(instanceId=f"n-{2 * number}", getInputsAndOutputs=True),
            )
            for number in range(1000)
        ]
        stack.enter_context(worker(scheduler, "crowd", echo))
        outputs = [wait.result(120).orchestrationState.output.value for wait in waits]
        assert outputs == [str(2 * number) for number in range(1000)]
        query = pb.InstanceQuery(runtimeStatus=[pb.ORCHESTRATION_STATUS_COMPLETED])
        request = pb.QueryInstancesRequest(query=query)
        eventually(lambda: count(clients[0], request) == 2000, "all have completed")


def count(raw: RawScheduler, request: pb.QueryInstancesRequest) -> int:
    """How many orchestrations match, on all pages."""
    found, request.query.continuationToken.value = 0, ""
    while True:
        response = raw.call("QueryInstances", request)
        found += len(response.orchestrationState)
        if not response.continuationToken.value:
            return found
        request.query.continuationToken.CopyFrom(response.continuationToken)


def test_callers_that_vanish_leave_nothing_behind() -> None:
    scheduler, address, stop = in_this_process()
    with RawScheduler(address, "hub") as raw:
        raw.start("never", "one")
        raw.call("SignalEntity", pb.SignalEntityRequest(instanceId="@e@1", name="run", requestId="1"))
        calls = [
            raw.call_later(method, request)
            for _ in range(50)
            for method, request in (
                ("WaitForInstanceStart", pb.GetInstanceRequest(instanceId="one")),
                ("WaitForInstanceCompletion", pb.GetInstanceRequest(instanceId="one")),
                ("GetEntity", pb.GetEntityRequest(instanceId="@e@1")),
            )
        ]
        streams = [raw.work(workItemFilters=pb.WorkItemFilters()) for _ in range(50)]
        eventually(lambda: sum(map(len, scheduler._waits.values())) == 100, "all wait")
        eventually(lambda: len(scheduler._streams) == 50, "all streams have begun")
        for call in calls:
            call.cancel()
        for stream in streams:
            stream.end()
        eventually(lambda: not (scheduler._waits or scheduler._looks or scheduler._looking), "nobody waits any more")
        eventually(lambda: not scheduler._streams, "no stream is left")
        assert raw.status("one") == "PENDING"
    stop()


def test_after_an_error_of_its_own_it_continues_from_what_is_stored(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, address, stop = in_this_process()
    with RawScheduler(address, "hub") as raw:
        raw.start("o", "one")
        stream = raw.work()
        lost = stream.take()

        def fail(*_: Any) -> None:
            raise RuntimeError("on purpose")

        monkeypatch.setattr(scheduler._hubs["hub"], "call", fail)  # until the hub is loaded again
        with pytest.raises(grpc.RpcError, match="RuntimeError: on purpose"):
            raw.start("o", "two")
        item = stream.take()
        assert item.orchestratorRequest.instanceId == "one"
        for token in (lost.completionToken, item.completionToken):
            response = pb.OrchestratorResponse(instanceId="one", completionToken=token, actions=[finish(f'"{token}"')])
            raw.call("CompleteOrchestratorTask", response)
        assert raw.state("one").output.value == f'"{item.completionToken}"'
        assert not raw.call("GetInstance", pb.GetInstanceRequest(instanceId="two")).exists
        stream.end()
    stop()
    assert "on purpose" in capsys.readouterr().err


def in_this_process() -> tuple[Scheduler, str, Callable[[], None]]:
    """A scheduler in this process, its address, and a function that stops it."""
    started: SimpleQueue[tuple[Scheduler, str]] = SimpleQueue()
    order = StopOrder()

    def run() -> None:
        scheduler = Scheduler(Store(""))
        started.put((scheduler, scheduler.start(0)))
        scheduler.run(order)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def stop() -> None:
        order.give()
        thread.join(10)

    return *started.get(timeout=10), stop
