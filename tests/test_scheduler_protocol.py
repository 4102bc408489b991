"""The scheduler's protocol: what each call does, and what workers and clients receive."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
import pytest
from conftest import Start, eventually
from durabletask import task
from fuzz_scheduler import fuzz_and_restart
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue
from raw_scheduler import RawScheduler
from task_hub import (
    BEGINNING,
    SECOND,
    TaskHub,
    call_activity,
    call_child,
    call_entity,
    entity_message,
    finish,
    lock,
    new_events,
)
from test_scheduler import connect, finished, worker

from local_services.scheduler.records import Refused, timestamp

PENDING, RUNNING, SUSPENDED = (
    pb.ORCHESTRATION_STATUS_PENDING,
    pb.ORCHESTRATION_STATUS_RUNNING,
    pb.ORCHESTRATION_STATUS_SUSPENDED,
)
COMPLETED, FAILED, TERMINATED, CONTINUED_AS_NEW = (
    pb.ORCHESTRATION_STATUS_COMPLETED,
    pb.ORCHESTRATION_STATUS_FAILED,
    pb.ORCHESTRATION_STATUS_TERMINATED,
    pb.ORCHESTRATION_STATUS_CONTINUED_AS_NEW,
)


@pytest.fixture
def task_hub() -> TaskHub:
    return TaskHub()


@pytest.fixture
def raw(scheduler: str, hub: str) -> Iterator[RawScheduler]:
    with RawScheduler(scheduler, hub) as raw:
        yield raw


def text(value: Any) -> StringValue:
    return StringValue(value=json.dumps(value))


# All methods ------------------------------------------------------------------------------------------------------

METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["TaskHubSidecarService"].methods}
UNIMPLEMENTED = {"DeleteTaskHub", "SkipGracefulOrchestrationTerminations"}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_answers_an_empty_request(name: str, raw: RawScheduler) -> None:
    request = Empty() if name == "Hello" else getattr(pb, METHODS[name].input_type.name)()
    try:
        if name == "GetWorkItems":
            raw.work().end()
        elif name == "StreamInstanceHistory":
            list(raw.call(name, request, timeout=10))
        else:
            raw.call(name, request, timeout=10)
    except grpc.RpcError as error:
        code, details = error.code(), str(error.details())  # pyright: ignore[reportAttributeAccessIssue]
        if name in UNIMPLEMENTED:
            assert code == grpc.StatusCode.UNIMPLEMENTED
            assert name in details
        else:
            assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), details
    else:
        assert name not in UNIMPLEMENTED


def test_a_method_of_another_time_is_refused_by_name(scheduler: str) -> None:
    with grpc.insecure_channel(scheduler.removeprefix("http://")) as channel:
        call = channel.unary_unary("/TaskHubSidecarService/FromTheFuture")
        with pytest.raises(grpc.RpcError, match="FromTheFuture") as refused:
            call(b"", timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]


def test_a_request_that_is_none_is_refused(scheduler: str) -> None:
    with grpc.insecure_channel(scheduler.removeprefix("http://")) as channel:
        call = channel.unary_unary("/TaskHubSidecarService/StartInstance")
        with pytest.raises(grpc.RpcError, match="not a CreateInstanceRequest") as refused:
            call(b"\xff\xff\xff", metadata=(("taskhub", "hub"),), timeout=10)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]


def test_an_error_that_quotes_something_long_reaches_its_caller(raw: RawScheduler) -> None:
    with pytest.raises(grpc.RpcError, match="There is no orchestration with instance id 'ééé") as refused:
        raw.call("RaiseEvent", pb.RaiseEventRequest(instanceId="é" * 100_000, name="event"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]


def test_three_seconds_of_fuzzing_find_nothing(start: Start, tmp_path: Path) -> None:
    defects, codes = fuzz_and_restart(start, tmp_path / "state.db", seconds=3, seed=int(time.time()))
    assert not defects
    assert {name for name, _ in codes} == set(METHODS)
    assert sum(codes.values()) > 300


# Traces -----------------------------------------------------------------------------------------------------------


def trace(name: str) -> pb.TraceContext:
    return pb.TraceContext(traceParent=f"00-{name}", spanID=name, traceState=StringValue(value=f"state {name}"))


def started(item: pb.WorkItem) -> pb.ExecutionStartedEvent:
    events = [*item.orchestratorRequest.pastEvents, *item.orchestratorRequest.newEvents]
    return next(event.executionStarted for event in events if event.HasField("executionStarted"))


def test_the_trace_of_a_client_reaches_the_orchestrator(task_hub: TaskHub) -> None:
    task_hub.start("o", "one", parentTraceContext=trace("client"))
    assert started(task_hub.connect().take()).parentTraceContext == trace("client")


def test_the_trace_of_an_orchestrator_reaches_its_activities_and_children(task_hub: TaskHub) -> None:
    task_hub.start("o", "one", parentTraceContext=trace("client"))
    worker = task_hub.connect()
    task_hub.complete(
        worker.take(),
        call_activity(1, parentTraceContext=trace("activity")),
        call_child(2, "child", parentTraceContext=trace("child")),
    )
    items = {item.WhichOneof("request"): item for item in worker.items}
    assert items["activityRequest"].activityRequest.parentTraceContext == trace("activity")
    assert started(items["orchestratorRequest"]).parentTraceContext == trace("child")


@pytest.mark.parametrize("seconds", [0, 60])
def test_the_trace_of_a_client_reaches_the_entity(seconds: int, task_hub: TaskHub) -> None:
    when = timestamp(BEGINNING + seconds * SECOND) if seconds else None
    task_hub.signal("@e@1", parentTraceContext=trace("client"), scheduledTime=when)
    task_hub.restart()
    worker = task_hub.connect()
    task_hub.sleep(60)
    assert worker.take().entityRequest.operations[0].traceContext == trace("client")


def test_the_trace_of_an_entity_reaches_what_it_signals_and_starts(task_hub: TaskHub) -> None:
    task_hub.signal("@e@1")
    worker = task_hub.connect()
    signal = pb.SendSignalAction(instanceId="@other@1", name="run", parentTraceContext=trace("signal"))
    new = pb.StartNewOrchestrationAction(instanceId="new", name="o", parentTraceContext=trace("start"))
    actions = [pb.OperationAction(sendSignal=signal), pb.OperationAction(startNewOrchestration=new)]
    task_hub.complete_batch(worker.take(), "state", actions=actions)
    items = {item.WhichOneof("request"): item for item in worker.items}
    assert items["entityRequest"].entityRequest.operations[0].traceContext == trace("signal")
    assert started(items["orchestratorRequest"]).parentTraceContext == trace("start")


def test_the_trace_of_an_orchestrators_caller_reaches_the_entities_that_it_calls(task_hub: TaskHub) -> None:
    task_hub.start("o", "one", parentTraceContext=trace("client"))
    worker = task_hub.connect()
    task_hub.complete(worker.take(), call_entity(1, "@e@1"))
    assert worker.take().entityRequest.operations[0].traceContext == trace("client")


def test_an_orchestrators_own_trace_comes_back_with_its_next_step(task_hub: TaskHub) -> None:
    own = pb.OrchestrationTraceContext(spanID=StringValue(value="span"), spanStartTime=timestamp(BEGINNING))
    task_hub.start("o", "one")
    task_hub.complete(task_hub.connect().take(), orchestrationTraceContext=own)
    task_hub.restart()
    task_hub.event("one", "go")
    assert task_hub.connect().take().orchestratorRequest.orchestrationTraceContext == own


# Versions, filters, tags ------------------------------------------------------------------------------------------


def versions(name: str, *wanted: str) -> pb.WorkItemFilters:
    return pb.WorkItemFilters(
        orchestrations=[pb.OrchestrationFilter(name=name, versions=wanted)],
        activities=[pb.ActivityFilter(name="activity", versions=wanted)],
    )


def test_a_worker_gets_what_its_filters_name_and_nothing_else(task_hub: TaskHub) -> None:
    for name in ("a", "b"):
        task_hub.start(name, name)
        task_hub.signal(f"@{name}@1")
    worker = task_hub.connect(
        pb.WorkItemFilters(orchestrations=[pb.OrchestrationFilter(name="a")], entities=[pb.EntityFilter(name="B")])
    )
    assert [item.orchestratorRequest.instanceId or item.entityRequest.instanceId for item in worker.items] == [
        "a",
        "@b@1",
    ]
    assert task_hub.connect(pb.WorkItemFilters()).items == []
    assert len(task_hub.connect().items) == 2, "a worker without filters takes all"


def test_a_version_goes_to_workers_that_take_it(task_hub: TaskHub) -> None:
    for version in ("1.0", "2.0"):
        task_hub.start("o", version, version=version)
    task_hub.start("o", "none")
    first = task_hub.connect(versions("o", "1.0"))
    second = task_hub.connect(versions("o", "2.0", ""))
    assert [item.orchestratorRequest.instanceId for item in first.items] == ["1.0"]
    assert sorted(item.orchestratorRequest.instanceId for item in second.items) == ["2.0", "none"]
    assert {state.version.value for state in [task_hub.state("1.0")] if state} == {"1.0"}


def test_an_activity_without_a_version_inherits_its_orchestrations(task_hub: TaskHub) -> None:
    task_hub.start("o", "one", version="2.0")
    worker = task_hub.connect(versions("o", "2.0"))
    own = call_activity(2, version=StringValue(value="3.0"))
    task_hub.complete(worker.take(), call_activity(1), own)
    assert worker.take().activityRequest.version.value == "2.0"
    assert not worker.items
    other = task_hub.connect(versions("none", "3.0"))
    assert other.take().activityRequest.version.value == "3.0"


def test_limits_of_a_worker_are_kept(task_hub: TaskHub) -> None:
    for number in range(5):
        task_hub.start("o", str(number))
    worker = task_hub.connect(maxConcurrentOrchestrationWorkItems=2)
    assert len(worker.items) == 2
    task_hub.complete(worker.take(), finish())
    assert len(worker.items) == 2
    second = task_hub.connect(maxConcurrentOrchestrationWorkItems=1)
    assert len(second.items) == 1


def test_work_is_spread_over_workers(task_hub: TaskHub) -> None:
    workers = [task_hub.connect() for _ in range(3)]
    for number in range(9):
        task_hub.start("o", str(number))
    assert [len(worker.items) for worker in workers] == [3, 3, 3]


def test_tags_reach_the_worker_and_every_client(raw: RawScheduler) -> None:
    tags = {"color": "red", "empty": ""}
    instance = raw.start("o", tags=tags)
    stream = raw.work()
    item = stream.take()
    assert started(item).tags == tags
    child = pb.CreateSubOrchestrationAction(name="child", instanceId=f"{instance}-child", tags={"size": "small"})
    actions = [
        call_activity(1, tags={"kind": "quick"}),
        pb.OrchestratorAction(id=2, createSubOrchestration=child),
    ]
    raw.call(
        "CompleteOrchestratorTask",
        pb.OrchestratorResponse(instanceId=instance, completionToken=item.completionToken, actions=actions),
    )
    items = {item.WhichOneof("request"): item for item in (stream.take(), stream.take())}
    assert items["activityRequest"].activityRequest.tags == {"kind": "quick"}
    assert raw.state(f"{instance}-child").tags == {"size": "small"}
    assert raw.state(instance).tags == tags
    found = raw.call("QueryInstances", pb.QueryInstancesRequest(query=pb.InstanceQuery(maxInstanceCount=10)))
    assert {state.instanceId: dict(state.tags) for state in found.orchestrationState}[instance] == tags
    stream.end()


# Starting ---------------------------------------------------------------------------------------------------------


def policy(*statuses: Any) -> pb.OrchestrationIdReusePolicy:
    return pb.OrchestrationIdReusePolicy(replaceableStatus=statuses)


def test_an_id_is_taken_unless_the_policy_allows_to_replace(task_hub: TaskHub) -> None:
    task_hub.start("o", "one", input="first")
    worker = task_hub.connect()
    with pytest.raises(Refused, match="is pending") as refused:
        task_hub.start("o", "one")
    assert refused.value.code == grpc.StatusCode.ALREADY_EXISTS
    task_hub.complete(worker.take(), finish())
    with pytest.raises(Refused, match="is completed"):
        task_hub.start("o", "one", orchestrationIdReusePolicy=policy(FAILED, TERMINATED))
    state = task_hub.state("one")
    assert state
    assert state.input.value == "first"
    task_hub.start("o", "one", input="second", orchestrationIdReusePolicy=policy(COMPLETED))
    assert task_hub.status("one") == "PENDING"
    assert started(worker.take()).input.value == "second"


def test_what_runs_is_replaced_with_all_that_belongs_to_it(task_hub: TaskHub) -> None:
    task_hub.start("o", "one")
    worker = task_hub.connect()
    old = worker.take()
    task_hub.complete(old, call_activity(1))
    activity = worker.take()
    task_hub.event("one", "old")
    late = worker.take()
    task_hub.start("o", "one", orchestrationIdReusePolicy=policy(PENDING, RUNNING, SUSPENDED, TERMINATED))
    task_hub.complete(late, finish())
    task_hub.complete(activity, '"late"')
    assert task_hub.status("one") == "PENDING"
    item = worker.take()
    assert new_events(item) == ["executionStarted"]
    assert not item.orchestratorRequest.pastEvents
    assert not worker.items


def test_a_scheduled_start_waits_for_its_time(task_hub: TaskHub) -> None:
    worker = task_hub.connect()
    task_hub.start("o", "one", scheduledStartTimestamp=timestamp(BEGINNING + 60 * SECOND))
    task_hub.start("o", "past", scheduledStartTimestamp=timestamp(BEGINNING - 60 * SECOND))
    task_hub.start("o", "never", scheduledStartTimestamp=timestamp(BEGINNING + 30 * SECOND))
    assert [item.orchestratorRequest.instanceId for item in worker.items] == ["past"]
    task_hub.call("TerminateInstance", pb.TerminateRequest(instanceId="never"))
    task_hub.event("one", "early")
    task_hub.sleep(59)
    assert len(worker.items) == 1
    assert task_hub.status("one") == "PENDING"
    task_hub.sleep(1)
    assert len(worker.items) == 2
    assert sorted(new_events(worker.items[1])) == ["eventRaised", "executionStarted"]


@pytest.mark.parametrize("seconds", [10**12, -(10**12), 2**63 - 1, -(2**63)])
def test_times_that_no_client_can_read_are_cut(seconds: int, task_hub: TaskHub) -> None:
    task_hub.start("o", "one", scheduledStartTimestamp=Timestamp(seconds=seconds))
    task_hub.restart()
    state = task_hub.state("one")
    assert state
    assert state.scheduledStartTimestamp.ToDatetime().year == (9999 if seconds > 0 else 1)


# Ending, suspending, restarting -----------------------------------------------------------------------------------


def family(task_hub: TaskHub) -> None:
    """A parent, its child and its grandchild, all running, and the child's activity with a worker."""
    task_hub.start("o", "parent")
    worker = task_hub.connect()
    task_hub.complete(worker.take(), call_child(1, "o", "child"))
    task_hub.complete(worker.take(), call_child(1, "o", "grandchild"), call_activity(2))
    items = {item.WhichOneof("request"): item for item in worker.items}
    task_hub.complete(items["orchestratorRequest"])
    worker.items.clear()
    task_hub.disconnect(worker)


@pytest.mark.parametrize(("recursive", "status"), [(True, "TERMINATED"), (False, "RUNNING")])
def test_terminating_takes_children_along_if_it_is_told_to(recursive: bool, status: str, task_hub: TaskHub) -> None:
    family(task_hub)
    task_hub.call(
        "TerminateInstance", pb.TerminateRequest(instanceId="parent", output=text("enough"), recursive=recursive)
    )
    state = task_hub.state("parent")
    assert state
    assert (task_hub.status("parent"), state.output.value) == ("TERMINATED", '"enough"')
    assert [task_hub.status(instance) for instance in ("child", "grandchild")] == [status, status]
    assert task_hub.history("parent")[-2:] == ["executionTerminated", "executionCompleted"]
    task_hub.call("TerminateInstance", pb.TerminateRequest(instanceId="parent", output=text("again")))
    state = task_hub.state("parent")
    assert state
    assert state.output.value == '"enough"'


def test_a_terminated_child_fails_its_parents_call(task_hub: TaskHub) -> None:
    family(task_hub)
    task_hub.call("TerminateInstance", pb.TerminateRequest(instanceId="child"))
    worker = task_hub.connect(versions("o"))
    item = next(item for item in worker.items if item.orchestratorRequest.instanceId == "parent")
    assert new_events(item) == ["subOrchestrationInstanceFailed"]


def test_what_arrives_while_suspended_waits_in_its_order(task_hub: TaskHub) -> None:
    task_hub.start("o", "one")
    worker = task_hub.connect()
    task_hub.complete(worker.take(), call_activity(1))
    task_hub.call("SuspendInstance", pb.SuspendRequest(instanceId="one", reason=text("lunch")))
    task_hub.call("SuspendInstance", pb.SuspendRequest(instanceId="one"))
    task_hub.event("one", "first")
    task_hub.complete(worker.take(), '"result"')
    task_hub.event("one", "second")
    task_hub.restart()
    worker = task_hub.connect()
    assert task_hub.status("one") == "SUSPENDED"
    assert not worker.items
    task_hub.call("ResumeInstance", pb.ResumeRequest(instanceId="one", reason=text("back")))
    assert task_hub.status("one") == "RUNNING"
    events = new_events(worker.take())
    assert events == ["executionSuspended", "eventRaised", "taskCompleted", "eventRaised", "executionResumed"]


def test_a_restart_keeps_name_input_version_and_tags(task_hub: TaskHub) -> None:
    task_hub.start("o", "one", input='"word"', version="2.0", tags={"color": "red"})
    worker = task_hub.connect()
    with pytest.raises(Refused, match="has not finished"):
        task_hub.call("RestartInstance", pb.RestartInstanceRequest(instanceId="one"))
    task_hub.complete(worker.take(), finish())
    for new_id in (True, False):
        request = pb.RestartInstanceRequest(instanceId="one", restartWithNewInstanceId=new_id)
        instance = task_hub.call("RestartInstance", request).instanceId
        assert (instance != "one") is new_id
        event = started(worker.take())
        assert (event.name, event.input.value, event.version.value) == ("o", '"word"', "2.0")
        assert event.tags == {"color": "red"}
    assert task_hub.history("one") == []


@pytest.mark.parametrize("method", ["TerminateInstance", "SuspendInstance", "ResumeInstance", "RestartInstance"])
def test_what_is_not_there_is_said(method: str, raw: RawScheduler) -> None:
    request = getattr(pb, METHODS[method].input_type.name)(instanceId="nobody")
    with pytest.raises(grpc.RpcError, match="no orchestration with instance id 'nobody'") as refused:
        raw.call(method, request)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]


def test_continue_as_new_begins_anew_with_the_events_that_nobody_waited_for(task_hub: TaskHub) -> None:
    task_hub.start("o", "one", tags={"color": "red"}, version="1.0", parentTraceContext=trace("client"))
    worker = task_hub.connect()
    item = worker.take()
    task_hub.event("one", "late")
    carried = pb.HistoryEvent(eventRaised=pb.EventRaisedEvent(name="carried"))
    task_hub.complete(item, call_activity(1), finish('"next"', CONTINUED_AS_NEW, carryoverEvents=[carried]))
    task_hub.restart()
    worker = task_hub.connect()
    item = next(item for item in worker.items if item.HasField("orchestratorRequest"))
    assert not item.orchestratorRequest.pastEvents
    assert new_events(item) == ["executionStarted", "eventRaised", "eventRaised"]
    assert [event.eventRaised.name for event in item.orchestratorRequest.newEvents][-2:] == ["carried", "late"]
    event = started(item)
    assert (event.input.value, event.version.value, event.tags) == ('"next"', "1.0", {"color": "red"})
    assert event.parentTraceContext == trace("client")
    task_hub.complete(item, finish('"end"'))
    assert task_hub.status("one") == "COMPLETED"


def test_a_child_that_continues_as_new_still_answers_its_parent(task_hub: TaskHub) -> None:
    task_hub.start("o", "parent")
    worker = task_hub.connect()
    task_hub.complete(worker.take(), call_child(1, "o", "child"))
    for number in range(3):
        task_hub.complete(worker.take(), finish(str(number), CONTINUED_AS_NEW))
    task_hub.complete(worker.take(), finish('"end"'))
    item = worker.take()
    assert new_events(item) == ["subOrchestrationInstanceCompleted"]
    assert item.orchestratorRequest.newEvents[-1].subOrchestrationInstanceCompleted.result.value == '"end"'


# Rewinding --------------------------------------------------------------------------------------------------------


def flaky_activity(_: task.ActivityContext, switch: str) -> str:
    if SWITCHES[switch]:
        raise ValueError("not yet")
    return "done"


SWITCHES: dict[str, bool] = {}
CALLS: list[str] = []


def count_activity(_: task.ActivityContext, switch: str) -> str:
    CALLS.append(switch)
    return "counted"


def call_flaky(context: task.OrchestrationContext, switch: str) -> Any:
    first = yield context.call_activity(count_activity, input=switch)
    return [first, (yield context.call_activity(flaky_activity, input=switch))]


def call_flaky_child(context: task.OrchestrationContext, switch: str) -> Any:
    return (yield context.call_sub_orchestrator(call_flaky, input=switch, instance_id=f"{switch}-child"))


@pytest.mark.parametrize("how", ["activity", "child", "purged child"])
def test_rewinding_repeats_what_failed_and_nothing_else(how: str, scheduler: str, hub: str, raw: RawScheduler) -> None:
    switch = uuid.uuid4().hex
    SWITCHES[switch] = True
    with (
        connect(scheduler, hub) as client,
        worker(scheduler, hub, call_flaky, call_flaky_child, flaky_activity, count_activity),
    ):
        orchestrator = "call_flaky" if how == "activity" else "call_flaky_child"
        instance = client.schedule_new_orchestration(orchestrator, input=switch)
        assert finished(client, instance).runtime_status.name == "FAILED"
        SWITCHES[switch] = False
        if how == "purged child":
            client.purge_orchestration(f"{switch}-child")
        client.rewind_orchestration(instance, reason="mended")
        state = finished(client, instance)
        assert (state.runtime_status.name, state.serialized_output) == ("COMPLETED", '["counted", "done"]')
        assert CALLS.count(switch) == (2 if how == "purged child" else 1)
        with pytest.raises(grpc.RpcError, match="has not failed"):
            raw.call("RewindInstance", pb.RewindInstanceRequest(instanceId=instance))


# Purging ----------------------------------------------------------------------------------------------------------


def test_purge_forgets_what_has_finished_and_nothing_else(task_hub: TaskHub) -> None:
    family(task_hub)
    task_hub.start("o", "other")
    purge = pb.PurgeInstancesRequest(instanceId="parent", recursive=True)
    assert task_hub.call("PurgeInstances", purge).deletedInstanceCount == 0
    task_hub.call("TerminateInstance", pb.TerminateRequest(instanceId="parent", recursive=True))
    without = pb.PurgeInstancesRequest(instanceId="parent")
    with_children = pb.PurgeInstancesRequest(instanceId="child", recursive=True)
    assert task_hub.call("PurgeInstances", without).deletedInstanceCount == 1
    assert task_hub.state("parent") is None
    assert task_hub.call("PurgeInstances", with_children).deletedInstanceCount == 2
    assert [task_hub.state(instance) for instance in ("child", "grandchild")] == [None, None]
    assert task_hub.status("other") == "PENDING"
    assert task_hub.call("PurgeInstances", without).deletedInstanceCount == 0
    worker = task_hub.connect()
    assert [item.orchestratorRequest.instanceId for item in worker.items] == ["other"], "its activity was removed too"
    assert task_hub.store.history("hub", "parent") is None


def test_purge_by_filter(raw: RawScheduler) -> None:
    began = time.time_ns() // 1000
    for name in ("done", "also-done", "running"):
        raw.start("o", name)
    for name in ("done", "also-done"):
        raw.call("TerminateInstance", pb.TerminateRequest(instanceId=name))

    def purge(**fields: Any) -> int:
        request = pb.PurgeInstancesRequest(purgeInstanceFilter=pb.PurgeInstanceFilter(**fields))
        response = raw.call("PurgeInstances", request)
        assert response.isComplete.value
        return response.deletedInstanceCount

    assert purge(runtimeStatus=[COMPLETED, FAILED]) == 0
    assert purge(createdTimeTo=timestamp(began)) == 0
    assert purge(createdTimeFrom=timestamp(began + 3600 * SECOND)) == 0
    between = {"createdTimeFrom": timestamp(began), "createdTimeTo": timestamp(began + 3600 * SECOND)}
    assert purge(runtimeStatus=[TERMINATED], **between) == 2
    assert raw.status("running") == "PENDING"
    batch = pb.InstanceBatch(instanceIds=["running", "nobody"])
    assert raw.call("PurgeInstances", pb.PurgeInstancesRequest(instanceBatch=batch)).deletedInstanceCount == 0


def test_purge_of_very_many_is_complete(raw: RawScheduler) -> None:
    for number in range(450):
        raw.start("o", f"n-{number}")
        raw.call("TerminateInstance", pb.TerminateRequest(instanceId=f"n-{number}"))
    purge = pb.PurgeInstancesRequest(purgeInstanceFilter=pb.PurgeInstanceFilter())
    response = raw.call("PurgeInstances", purge)
    assert (response.deletedInstanceCount, response.isComplete.value) == (450, True)
    assert not raw.call("QueryInstances", pb.QueryInstancesRequest()).orchestrationState


# Pages ------------------------------------------------------------------------------------------------------------


def test_pages_of_orchestrations_hold_each_once(raw: RawScheduler) -> None:
    for number in range(25):
        raw.start("o", f"n-{number:02}")
        if number % 2:
            raw.call("TerminateInstance", pb.TerminateRequest(instanceId=f"n-{number:02}"))
    raw.start("o", "other")

    def pages(**query: Any) -> list[list[str]]:
        found: list[list[str]] = []
        token = StringValue()
        while not found or token.value:
            request = pb.QueryInstancesRequest(query=pb.InstanceQuery(continuationToken=token, **query))
            response = raw.call("QueryInstances", request)
            found.append([state.instanceId for state in response.orchestrationState])
            token = response.continuationToken
        return found

    everything = [f"n-{number:02}" for number in range(25)] + ["other"]
    assert pages(maxInstanceCount=10) == [everything[:10], everything[10:20], everything[20:]]
    assert pages(maxInstanceCount=26) == [everything]
    assert pages() == [everything]
    assert pages(maxInstanceCount=10, instanceIdPrefix=StringValue(value="n-1")) == [everything[10:20]]
    assert pages(runtimeStatus=[TERMINATED], maxInstanceCount=7) == [everything[1:14:2], everything[15:25:2]]
    assert pages(runtimeStatus=[FAILED]) == [[]]


def test_a_page_is_not_larger_than_a_client_can_receive(raw: RawScheduler) -> None:
    for number in range(6):
        raw.start("o", f"n-{number}", input=text("x" * 1_000_000))
    seen: list[str] = []
    query = pb.InstanceQuery(fetchInputsAndOutputs=True, maxInstanceCount=100)
    while True:
        response = raw.call("QueryInstances", pb.QueryInstancesRequest(query=query))
        seen += [state.instanceId for state in response.orchestrationState]
        if not response.continuationToken.value:
            break
        query.continuationToken.CopyFrom(response.continuationToken)
    assert seen == [f"n-{number}" for number in range(6)]


def test_pages_of_ids_and_entities_hold_each_once(raw: RawScheduler) -> None:
    for number in range(12):
        raw.start("o", f"n-{number:02}")
        raw.call("TerminateInstance", pb.TerminateRequest(instanceId=f"n-{number:02}"))
        raw.call("SignalEntity", pb.SignalEntityRequest(instanceId=f"@e@{number:02}", name="run"))
    stream = raw.work(workItemFilters=pb.WorkItemFilters(entities=[pb.EntityFilter(name="e")]))
    for _, item in zip(range(12), stream, strict=False):
        result = pb.EntityBatchResult(completionToken=item.completionToken, entityState=text("state"))
        result.results.add().success.result.value = "1"
        raw.call("CompleteEntityTask", result)
    stream.end()
    ids: list[str] = []
    key = StringValue()
    while not ids or key.value:
        request = pb.ListInstanceIdsRequest(pageSize=5, lastInstanceKey=key, runtimeStatus=[TERMINATED])
        response = raw.call("ListInstanceIds", request)
        assert 1 <= len(response.instanceIds) <= 5
        ids += response.instanceIds
        key = response.lastInstanceKey
    assert ids == [f"n-{number:02}" for number in range(12)]
    entities: list[str] = []
    token = StringValue()
    while not entities or token.value:
        query = pb.EntityQuery(includeState=True, continuationToken=token)
        query.pageSize.value = 5
        query.instanceIdStartsWith.value = "@e@"
        response = raw.call("QueryEntities", pb.QueryEntitiesRequest(query=query))
        assert {entity.serializedState.value for entity in response.entities} == {'"state"'}
        entities += [entity.instanceId for entity in response.entities]
        token = response.continuationToken
    assert entities == [f"@e@{number:02}" for number in range(12)]


GARBAGE = ["x", "[]", "{}", "[1]", "[1, 2, 3]", "null", '"x"', "[[1], [2]]", "[1e3, 2]", f"[{10**30}, 1]", "[" * 9999,
           '["\\ud83d"]', '["\\ud83d", 1]', "[null, null]", "[true, {}]", "\0", "[NaN, 1]"]  # fmt: skip


@pytest.mark.parametrize("token", GARBAGE, ids=range(len(GARBAGE)))
def test_a_token_that_is_none_is_refused(token: str, raw: RawScheduler) -> None:
    raw.start("o", "one")
    value = StringValue(value=token)
    for method, request in (
        ("QueryInstances", pb.QueryInstancesRequest(query=pb.InstanceQuery(continuationToken=value))),
        ("ListInstanceIds", pb.ListInstanceIdsRequest(lastInstanceKey=value)),
        ("QueryEntities", pb.QueryEntitiesRequest(query=pb.EntityQuery(continuationToken=value))),
    ):
        if method == "QueryEntities" and token == "[1]":  # noqa: S105
            continue  # may be a valid one
        with pytest.raises(grpc.RpcError, match="token") as refused:
            raw.call(method, request)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]


def test_a_long_history_comes_in_parts(raw: RawScheduler) -> None:
    raw.start("o", "one")
    for number in range(340):
        request = pb.RaiseEventRequest(instanceId="one", name=f"event {number}", input=text("x" * 16_000))
        raw.call("RaiseEvent", request)
    raw.call("TerminateInstance", pb.TerminateRequest(instanceId="one"))
    chunks = list(raw.call("StreamInstanceHistory", pb.StreamInstanceHistoryRequest(instanceId="one")))
    assert len(chunks) >= 5
    assert max(chunk.ByteSize() for chunk in chunks) < 4 * 1024 * 1024
    events = [event for chunk in chunks for event in chunk.events]
    names = [event.eventRaised.name for event in events if event.HasField("eventRaised")]
    assert names == [f"event {number}" for number in range(340)]


# Entities ---------------------------------------------------------------------------------------------------------


def test_an_entity_without_a_state_is_gone_by_itself(task_hub: TaskHub) -> None:
    worker = task_hub.connect()
    task_hub.signal("@e@1")
    task_hub.complete_batch(worker.take(), "state")
    assert task_hub.entity("@e@1")
    task_hub.signal("@e@1", "delete")
    task_hub.complete_batch(worker.take(), None)
    assert task_hub.entity("@e@1") is None
    found, _ = task_hub.store.entities("hub", pb.EntityQuery(includeTransient=True))
    assert found == []
    clean = pb.CleanEntityStorageRequest(removeEmptyEntities=True, releaseOrphanedLocks=True)
    response = task_hub.call("CleanEntityStorage", clean)
    assert (response.emptyEntitiesRemoved, response.orphanedLocksReleased) == (0, 0)


@pytest.mark.parametrize("end", ["terminated", "completed", "continued as new", "replaced"])
def test_locks_whose_owner_is_gone_open_by_themselves(end: str, task_hub: TaskHub) -> None:
    task_hub.start("o", "owner")
    task_hub.start("o", "next")
    worker = task_hub.connect(versions("o"))
    first, second = worker.take(), worker.take()
    task_hub.complete(first, lock(1, "a", "@e@1", "@e@2"))
    task_hub.complete(second, lock(1, "b", "@e@2", "@e@3"))
    step = worker.take()
    assert (step.orchestratorRequest.instanceId, new_events(step)) == ("owner", ["entityLockGranted"])
    task_hub.signal("@e@1")
    match end:
        case "terminated":
            task_hub.call("TerminateInstance", pb.TerminateRequest(instanceId="owner"))
        case "completed":
            task_hub.complete(step, finish())
        case "continued as new":
            task_hub.complete(step, finish("1", CONTINUED_AS_NEW))
        case _:
            task_hub.start("o", "owner", orchestrationIdReusePolicy=policy(RUNNING, TERMINATED))
    granted = [item for item in worker.items if item.orchestratorRequest.instanceId == "next"]
    assert [new_events(item) for item in granted] == [["entityLockGranted"]]
    locked = task_hub.entity("@e@2")
    assert locked
    assert locked.lockedBy.value == "next"
    entities = task_hub.connect(pb.WorkItemFilters(entities=[pb.EntityFilter(name="e")]))
    assert entities.take().entityRequest.instanceId == "@e@1"


def test_under_a_lock_only_its_owner_is_served(task_hub: TaskHub) -> None:
    task_hub.start("o", "owner")
    worker = task_hub.connect()
    task_hub.complete(worker.take(), lock(1, "a", "@e@1"))
    step = worker.take()
    task_hub.signal("@e@1", "other")
    assert not worker.items
    task_hub.complete(step, call_entity(2, "@e@1", "mine"))
    item = worker.take()
    assert [operation.operation for operation in item.entityRequest.operations] == ["mine"]
    task_hub.complete_batch(item, "state")
    unlock = pb.EntityUnlockSentEvent(criticalSectionId="a", targetInstanceId=StringValue(value="@e@1"))
    task_hub.complete(worker.take(), entity_message(3, entityUnlockSent=unlock))
    assert [operation.operation for operation in worker.take().entityRequest.operations] == ["other"]


def test_signals_and_calls_are_done_in_their_order(task_hub: TaskHub) -> None:
    task_hub.start("o", "caller")
    caller = task_hub.connect(versions("o"))
    task_hub.signal("@e@1", "first")
    task_hub.complete(caller.take(), call_entity(1, "@e@1", "second"))
    task_hub.signal("@e@1", "third", scheduledTime=timestamp(BEGINNING + SECOND))
    task_hub.signal("@e@1", "fourth")
    worker = task_hub.connect(pb.WorkItemFilters(entities=[pb.EntityFilter(name="e")]))
    item = worker.take()
    assert [operation.operation for operation in item.entityRequest.operations] == ["first", "second", "fourth"]
    task_hub.sleep(1)
    task_hub.complete_batch(item, "state")
    assert [operation.operation for operation in worker.take().entityRequest.operations] == ["third"]
    step = caller.take()
    assert new_events(step) == ["entityOperationCompleted"]


def test_a_client_that_waits_for_a_busy_entity_sees_the_change(raw: RawScheduler) -> None:
    raw.call("SignalEntity", pb.SignalEntityRequest(instanceId="@e@1", name="run"))
    stream = raw.work()
    item = stream.take()
    waiting = raw.call_later("GetEntity", pb.GetEntityRequest(instanceId="@e@1", includeState=True))
    result = pb.EntityBatchResult(completionToken=item.completionToken, entityState=text("new"))
    result.results.add().success.result.value = "1"
    raw.call("CompleteEntityTask", result)
    waiting.result(10)
    assert eventually(lambda: raw.entity("@e@1"), "its state").serializedState.value == '"new"'
    stream.end()
