"""The work in a simulation: orchestrations that run a script, activities, entities that keep a list."""

import json
import logging
import random
from datetime import timedelta
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask import task
from durabletask.entities import EntityInstanceId
from durabletask.serialization import JsonDataConverter
from durabletask.worker import _OrchestrationExecutor, _Registry
from simulation_model import Wrong, expect

from local_services.scheduler.limits import failure

INSTANCES = [f"i{n}" for n in range(6)]
ORCHESTRATIONS, ACTIVITIES, EVENTS = ["alpha", "beta"], ["steady", "flaky"], ["Go", "stop"]
ENTITIES = ["@left@1", "@left@2", "@right@1"]

# What orchestrations do ----------------------------------------------------------------------------------------


def random_script(rng: random.Random, depth: int = 0) -> list[Any]:
    """The steps of one orchestration, for `perform`."""
    script: list[Any] = [_random_step(rng, depth) for _ in range(rng.randint(1, 4))]
    if depth < 2 and rng.random() < 0.25:
        script.append(["again", random_script(rng, depth + 1), rng.random() < 0.7])
    return script


def _random_step(rng: random.Random, depth: int) -> list[Any]:
    kind = rng.choice(["activity", "timer", "event", "parallel", "race", "leave", "signal", "call", "lock", "send"])
    if kind == "parallel":
        return [kind, [_random_task(rng, depth) for _ in range(rng.randint(2, 3))]]
    if kind == "race":
        return [kind, [_random_task(rng, depth), _random_task(rng, depth)]]
    if kind == "leave":
        return [kind, _random_task(rng, depth)]
    if kind == "signal":
        return [
            kind,
            rng.choice(ENTITIES),
            rng.choice(["add", "add", "relay", "launch", "fail", "delete"]),
            rng.choice([0, 0, 5]),
        ]
    if kind == "lock":
        return [kind, rng.sample(ENTITIES, rng.randint(1, 3))]
    if kind == "send":
        return [kind, rng.choice(INSTANCES), rng.choice(EVENTS)]
    return _random_task(rng, depth)


def _random_task(rng: random.Random, depth: int) -> list[Any]:
    kind = rng.choice(["activity", "activity", "timer", "event", "call", "child"])
    if kind == "child" and depth < 2:
        instance = rng.choice(INSTANCES) if rng.random() < 0.2 else None
        return [kind, rng.choice(ORCHESTRATIONS), random_script(rng, depth + 1), instance]
    if kind == "timer":
        return [kind, rng.choice([0, 1, 10, 100])]
    if kind == "event":
        return [kind, rng.choice(EVENTS)]
    if kind == "call":
        return [kind, rng.choice(ENTITIES)]
    return ["activity", rng.choices(ACTIVITIES, [3, 1])[0]]


def perform(context: task.OrchestrationContext, script: list[Any]) -> Any:
    """The orchestrator: does the steps of its script, and checks the answers that it gets."""
    for step in script:
        match step:
            case ["parallel", steps]:
                yield task.when_all([_begin(context, step) for step in steps])
            case ["race", steps]:
                winner = yield task.when_any([_begin(context, step) for step in steps])
                winner.get_result()  # raises the failure: a rewound history must not continue after it
            case ["leave", step]:
                _begin(context, step)
            case ["signal", entity, operation, delay]:
                at = context.current_utc_datetime + timedelta(seconds=delay) if delay else None
                context.signal_entity(EntityInstanceId.parse(entity), operation, context.new_uuid(), at)
            case ["lock", entities]:
                ids = [EntityInstanceId.parse(entity) for entity in entities]
                with (yield context.lock_entities(ids)):
                    for entity in ids:
                        first = yield context.call_entity(entity, "add", context.new_uuid())
                        second = yield context.call_entity(entity, "add", context.new_uuid())
                        assert second == first + 1, "another operation ran despite the lock"
            case ["send", instance, event]:
                context.send_event(instance, event, data=context.new_uuid())
            case ["again", script, keep]:
                context.continue_as_new(script, save_events=keep)
                return None
            case _:
                answer = yield _begin(context, step)
                if step[0] == "activity":
                    assert answer.endswith(" done"), f"an activity answers {answer}"
    return len(script)


def _begin(context: task.OrchestrationContext, step: list[Any]) -> task.Task[Any]:
    match step:
        case ["activity", name]:
            return context.call_activity(name, input=context.new_uuid())
        case ["timer", seconds]:
            return context.create_timer(timedelta(seconds=seconds))
        case ["event", name]:
            return context.wait_for_external_event(name)
        case ["call", entity]:
            return context.call_entity(EntityInstanceId.parse(entity), "add", context.new_uuid())
        case ["child", name, script, instance]:
            return context.call_sub_orchestrator(name, input=script, instance_id=instance)
    raise ValueError(step)


class _Complaints(logging.Handler):
    """If the SDK ignores something with a warning, the scheduler has made an error."""

    def emit(self, record: logging.LogRecord) -> None:
        raise Wrong(f"the SDK warns: {record.getMessage()}")


_LOGGER = logging.getLogger("simulation")
_LOGGER.setLevel(logging.WARNING)
_LOGGER.propagate = False
_LOGGER.addHandler(_Complaints())
_REGISTRY = _Registry()
for _name in ORCHESTRATIONS:
    _REGISTRY.add_named_orchestrator(_name, perform)

# What workers do -----------------------------------------------------------------------------------------------


def do_step(token: str, request: pb.OrchestratorRequest) -> pb.OrchestratorResponse:
    """An orchestrator's step, done by the SDK. Raises if the replay fails."""
    executor = _OrchestrationExecutor(_REGISTRY, _LOGGER, JsonDataConverter())
    result = executor.execute(request.instanceId, request.pastEvents, request.newEvents)
    for action in result.actions:
        details = action.completeOrchestration.failureDetails
        expected = details.errorType.rpartition(".")[2] in ("", "TaskFailedError")
        expect(expected, f"{request.instanceId} failed:", details.errorType, details.errorMessage)
    return pb.OrchestratorResponse(instanceId=request.instanceId, actions=result.actions, completionToken=token)


def do_activity(token: str, request: pb.ActivityRequest, fails: bool) -> pb.ActivityResponse:
    """An activity: it adds ' done' to its input, or fails."""
    response = pb.ActivityResponse(
        instanceId=request.orchestrationInstance.instanceId, taskId=request.taskId, completionToken=token
    )
    if fails:
        response.failureDetails.CopyFrom(failure("Flaky", "It failed."))
    else:
        response.result.value = json.dumps(json.loads(request.input.value) + " done")
    return response


def do_batch(token: str, request: pb.EntityBatchRequest, done: int) -> pb.EntityBatchResult:
    """The first `done` operations of an entity. Its state is a list of what it received; it answers the length."""
    state: list[str] | None = json.loads(request.entityState.value) if request.HasField("entityState") else None
    result = pb.EntityBatchResult(completionToken=token)
    for operation in list(request.operations)[:done]:
        tag = json.loads(operation.input.value)
        if operation.operation == "fail":
            result.results.add().failure.failureDetails.CopyFrom(failure("Refuses", "It failed."))
            continue
        state = None if operation.operation == "delete" else [*(state or []), tag]
        result.results.add().success.result.value = json.dumps(len(state or []))
        if operation.operation == "relay":
            signal = result.actions.add().sendSignal
            signal.instanceId, signal.name = ENTITIES[len(tag) % len(ENTITIES)], "add"
            signal.input.value = json.dumps(tag + "'")
        elif operation.operation == "launch":
            start = result.actions.add().startNewOrchestration
            start.instanceId, start.name = f"by{request.instanceId[1:]}", "alpha"
            start.input.value = json.dumps([["activity", "steady"]])
    if state is not None:
        result.entityState.value = json.dumps(state)
    return result
