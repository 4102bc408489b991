"""Durable tools: the effect of a call happens once, however often the turn that makes the call is repeated.

A turn of an agent is one operation, tools included. When a worker dies during it, another worker repeats all of it. So
each call of a durable tool is an orchestration with one activity, and the orchestration's id is made from conversation,
turn and call. A repeated turn finds the orchestration of its call, and takes the result from there.

Two limits. If the model chooses other arguments when the turn is repeated, that is another call. And an activity runs
at least once, so a tool receives a key, the same at each repetition: as a file's name, or for a payment provider.
"""

import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial, wraps
from hashlib import sha256
from typing import Any

from hosting.agent_runtime import before_each_attempt
from hosting.scheduler import AGENT_CALLS, scheduler_client

import grpc
from agent_framework import FunctionTool
from approvals import DECIDED, Step, ToolCall, act_if_approved, prefix_of
from durabletask.client import OrchestrationStatus
from durabletask.internal.orchestrator_service_pb2 import OrchestrationIdReusePolicy
from durabletask.task import ActivityContext, OrchestrationContext, RetryPolicy
from durabletask.worker import TaskHubGrpcWorker
from pydantic_core import to_jsonable_python

UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
RETRY = RetryPolicy(first_retry_interval=timedelta(seconds=1), max_number_of_attempts=3, backoff_coefficient=2)
# Explicitly nothing: by Durable Functions' default, a new orchestration replaces a finished one with the same id.
NO_REUSE = OrchestrationIdReusePolicy(replaceableStatus=[])


@dataclass
class Turn:
    """The turn that an agent works on: the conversation's entity, the question's id, and the calls made so far."""

    conversation: str
    correlation_id: str
    calls: Counter[str] = field(default_factory=Counter)


_client = cache(scheduler_client)
_turn: ContextVar[Turn] = ContextVar("_turn")
_waiting = ThreadPoolExecutor(AGENT_CALLS, "durable-tools")  # all agents share one event loop, which must not wait


class DurableTool(FunctionTool):
    """See `durable_tool`. The model sees the function's parameters without `key`."""

    def __init__(self, function: Callable[..., Any], approval: bool | Callable[..., bool], time: timedelta) -> None:
        @wraps(function)
        async def call(**arguments: Any) -> Any:
            needed = approval(**arguments) if callable(approval) else approval
            return await call_once(self.name, to_jsonable_python(arguments), time.total_seconds() if needed else None)

        def orchestrate(context: OrchestrationContext, call: ToolCall) -> Step[Any]:
            act = partial(context.call_activity, call.tool, input=call.arguments, retry_policy=RETRY)
            return (yield act()) if call.approval_seconds is None else (yield from act_if_approved(context, call, act))

        def run(context: ActivityContext, arguments: dict[str, Any]) -> Any:
            return function(**arguments, key=context.orchestration_id)

        signature = inspect.signature(function)
        shown = [parameter for parameter in signature.parameters.values() if parameter.name != "key"]
        vars(call)["__signature__"] = signature.replace(parameters=shown)
        super().__init__(name=function.__name__, description=inspect.getdoc(function) or "", func=call)
        orchestrate.__name__ = run.__name__ = self.name
        self.orchestrator, self.activity = orchestrate, run


def durable_tool(
    approval: bool | Callable[..., bool] = False, approval_time: timedelta = timedelta(days=1)
) -> Callable[[Callable[..., Any]], DurableTool]:
    """Make a durable tool from a function of JSON arguments and `key`.

    Args:
        approval: whether a person has to approve a call; may be a rule on its arguments.
        approval_time: how long a call waits for that.
    """
    return lambda function: DurableTool(function, approval, approval_time)


def host_durable_tools(worker: TaskHubGrpcWorker, *tools: DurableTool) -> None:
    """Have the worker run these tools, and tell them which turn they work in. To be called before `add_agent`."""
    before_each_attempt(worker, lambda entity, correlation_id: _turn.set(Turn(str(entity), correlation_id)))
    for tool in tools:
        worker.add_orchestrator(tool.orchestrator)
        worker.add_activity(tool.activity)


async def call_once(tool: str, arguments: dict[str, Any], approval_seconds: float | None) -> Any:
    """The result of this call in this turn: it is made now, or was made by an earlier attempt at the turn."""
    turn = _turn.get()
    if turn.correlation_id.endswith(DECIDED):
        return "Refused: in this turn you only tell the user what became of a call."
    call = ToolCall(tool=tool, arguments=arguments, conversation=turn.conversation, approval_seconds=approval_seconds)
    turn.calls[call.fingerprint] += 1  # the same call twice in a turn is two calls
    identity = [turn.conversation, turn.correlation_id, call.fingerprint, turn.calls[call.fingerprint]]
    instance = f"{prefix_of(turn.conversation)}-{sha256(json.dumps(identity).encode()).hexdigest()[:32]}"
    return await asyncio.get_running_loop().run_in_executor(_waiting, result_of, instance, call)


def result_of(instance: str, call: ToolCall) -> Any:
    """Start the call's orchestration if there is none, and wait for it, however long the scheduler is unreachable."""
    while True:
        try:
            client = _client()
            if client.get_orchestration_state(instance, fetch_payloads=False) is None:
                client.schedule_new_orchestration(call.tool, input=call, instance_id=instance, reuse_id_policy=NO_REUSE)
            if call.approval_seconds is not None:
                return f"Not done yet: it waits for a person's approval, ID {instance}. The user will hear of it."
            state = client.wait_for_orchestration_completion(instance, timeout=60)
            if state and state.runtime_status is OrchestrationStatus.COMPLETED:
                return state.get_output()
            details = state and state.failure_details
            return f"{call.tool} failed: {details.message if details else 'somebody has ended it.'}"
        except TimeoutError:
            pass
        except grpc.RpcError as error:
            # ALREADY_EXISTS: another worker, which was thought dead, has started it in this moment.
            if not isinstance(error, grpc.Call) or error.code() not in (*UNREACHABLE, grpc.StatusCode.ALREADY_EXISTS):
                raise
