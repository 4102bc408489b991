"""The steps of an orchestration: an agent's answer, checked and asked for again; and a client's wait for the result.

The same file in samples 04 to 07, so that each folder can be copied out alone.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar, cast

from agent_framework import AgentResponse, AgentSession
from agent_framework_durabletask import DurableAIAgent
from durabletask.client import OrchestrationState, OrchestrationStatus, TaskHubGrpcClient
from durabletask.task import OrchestrationContext, Task
from pydantic import BaseModel, TypeAdapter, ValidationError
from support import AgentError, UsageError, setting, waiting_at_most

RETRY_PAUSES = (0.5, 1.0, 2.0)  # seconds between attempts; in each, the model's SDK has retried on its own as well
LOOK_SECONDS = 1.0  # how often a waiting client brings its progress line up to date; the result itself comes at once
QUIET_SECONDS = 2.0  # what takes no longer than this is not worth a progress line

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Step: TypeAlias = Generator[Task[Any], Any, T]

log = logging.getLogger("sample")


# In an orchestrator: no clock, no randomness, no environment, for all of it is run again in a replay ----------------


class StepFailed(Exception):
    """An agent did not answer, or not as it should; the message names it and says why.

    Attributes:
        rejected: the model will not take this request, however often it is asked.
    """

    def __init__(self, agent_name: str, reason: str, rejected: bool = False) -> None:
        super().__init__(f"{agent_name}: {reason}")
        self.rejected = rejected


def retry_pauses() -> Iterator[timedelta]:
    """The pause before each attempt at a step: none before the first, then growing ones, until it is given up."""
    yield from (timedelta(seconds=seconds) for seconds in (0.0, *RETRY_PAUSES))


def ask(
    context: OrchestrationContext,
    agent: DurableAIAgent[Any],
    message: str,
    *,
    session: AgentSession | None = None,
    expect: type[T] = str,
) -> Step[T]:
    """Ask an agent until it answers as it should: `text = yield from ask(context, agent, "Write …")`.

    A failed attempt is made again in a new conversation, so that the agent does not read its question twice. With a
    `session` it has to be the same conversation.

    Args:
        expect: the pydantic model that the answer has to be, as JSON; without it, the text itself is the answer.

    Raises:
        StepFailed: the model rejects the request, or has failed at each attempt.
    """
    logger = context.create_replay_safe_logger(log)
    failure: StepFailed | None = None
    for pause in retry_pauses():
        if pause:
            yield context.create_timer(pause)
        response = yield agent.run(message, session=session)
        try:
            return checked(agent.name, response, expect)
        except StepFailed as problem:
            failure = problem
        logger.warning("A step of %s failed. %s", context.instance_id, failure)
        if failure.rejected:
            break
    assert failure
    raise failure


def checked(agent_name: str, response: AgentResponse, expect: type[T] = str) -> T:
    """The response's text, or what it holds as JSON. Raises StepFailed if it is not an answer.

    The runtime hands over a failed model call as a response like any other, with an empty text.
    """
    for content in (content for message in response.messages for content in message.contents):
        if content.type == "error":
            reason = content.message or "The agent failed without a message."
            raise StepFailed(agent_name, reason, rejected=content.error_code == "ModelRejected")
    text = response.text.strip()
    if not text:
        raise StepFailed(agent_name, "The model's answer is empty.")
    if expect is str:
        return cast(T, text)
    try:
        return TypeAdapter(expect).validate_json(text)
    except ValidationError as error:
        problem = _in_words(error)
    raise StepFailed(agent_name, f"The model's answer is not valid. {problem}. It said: {text[:200]}")


def read_input(model: type[M], data: object) -> M:
    """The orchestration's input, which arrives as plain JSON. Raises ValueError that names the field which is wrong."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problem = _in_words(error)
    raise ValueError(f"The orchestration's input is not valid. {problem}")


def _in_words(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or error.title}: {one['msg']}" for one in error.errors())


# In a client --------------------------------------------------------------------------------------------------------


class OrchestrationFailed(AgentError):
    """The orchestration ended FAILED; the message says why, `state` has the rest."""

    def __init__(self, state: OrchestrationState) -> None:
        details = state.failure_details
        while details and details.inner_failure and details.is_caused_by("TaskFailedError"):
            details = details.inner_failure  # what went wrong in the activity, in its own words
        super().__init__(details.message or details.error_type if details else "It failed without a message.")
        self.state = state


def add_waiting_arguments(parser: argparse.ArgumentParser, timeout: float = 120.0) -> None:
    """Add what each client takes: --no-wait, --instance, --timeout."""
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--no-wait", action="store_true", help="start, print the instance id, and leave")
    way.add_argument("--instance", metavar="ID", help="come back to what was started earlier")
    parser.add_argument(
        "--timeout",
        type=float,
        default=timeout,
        metavar="SECONDS",
        help=f"how long to wait for the result ({timeout:g})",
    )


def start_or_resume(
    client: TaskHubGrpcClient, orchestration_name: str, *, input: Any = None, instance: str | None = None
) -> str:
    """Start an orchestration, or find the one with this instance id; returns the id. Raises UsageError if none has."""
    if instance is None:
        return client.schedule_new_orchestration(orchestration_name, input=input)
    state = client.get_orchestration_state(instance, fetch_payloads=False)
    if state is None or state.name != orchestration_name:
        raise UsageError(
            f"Task hub '{setting('TASKHUB', 'default')}' has no {orchestration_name} with the instance id "
            f"'{instance}'. (The emulator forgets everything when it stops.)"
        )
    return instance


def announce(instance_id: str) -> None:
    """For --no-wait: the id on stdout, alone, for a script to read; how to come back on stderr."""
    print(instance_id, flush=True)
    print(f"Started. {_come_back(instance_id)}", file=sys.stderr)


def result_of(
    client: TaskHubGrpcClient,
    instance_id: str,
    timeout: float,
    on_change: Callable[[OrchestrationState], None] | None = None,
) -> OrchestrationState:
    """Wait until the orchestration has completed, with a line on stderr that shows the progress; returns its state.

    Args:
        timeout: seconds; what `on_change` takes is not counted.
        on_change: is given the state whenever the custom status has changed, while the orchestration goes on.

    Raises:
        OrchestrationFailed: it failed.
        AgentError: it was terminated, or has not ended in time.
        grpc.RpcError: the scheduler is unreachable for longer than OUTAGE_SECONDS.
    """
    progress = _Progress()
    deadline = time.monotonic() + timeout
    status_seen = None
    try:
        while True:
            left = max(0.0, deadline - time.monotonic())
            with waiting_at_most(left):
                state = _look(client, instance_id, min(left, 0.2 if on_change else LOOK_SECONDS))
            where = _WHERE.get(state.runtime_status, "running")
            if state.runtime_status is OrchestrationStatus.COMPLETED:
                return state
            if state.runtime_status is OrchestrationStatus.FAILED:
                raise OrchestrationFailed(state)
            if state.runtime_status is OrchestrationStatus.TERMINATED:
                raise AgentError(f"{instance_id} was terminated: {state.get_output() or 'no reason given'}")
            if on_change and state.serialized_custom_status != status_seen:
                status_seen = state.serialized_custom_status
                progress.clear()
                began = time.monotonic()
                on_change(state)
                deadline += time.monotonic() - began
                progress = _Progress()
            elif not left:
                raise AgentError(f"No result within {timeout:g} s ({where}). {_come_back(instance_id)}")
            progress.show(where)
    except KeyboardInterrupt:
        progress.clear()
        print(_come_back(instance_id), file=sys.stderr)
        raise
    finally:
        progress.clear()


_WHERE = {
    OrchestrationStatus.PENDING: "not begun: is a worker running? python worker.py",
    OrchestrationStatus.SUSPENDED: "suspended: it goes on when somebody resumes it",
}


def _look(client: TaskHubGrpcClient, instance_id: str, seconds: float) -> OrchestrationState:
    """The state at the end, or else after so many seconds."""
    try:
        state = client.wait_for_orchestration_completion(instance_id, timeout=seconds)
    except TimeoutError:
        state = client.get_orchestration_state(instance_id)
    if state is None:
        raise AgentError(f"The scheduler does not know {instance_id} any more: purged, or its state was deleted.")
    return state


def _come_back(instance_id: str) -> str:
    return f"The work goes on without this client. To come back to it: python client.py --instance {instance_id}"


class _Progress:
    """On a terminal one line that keeps up to date; elsewhere a line now and then, ever more seldom."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = QUIET_SECONDS
        self._width = 0

    def show(self, what: str) -> None:
        seconds = time.monotonic() - self._began
        if seconds < self._next:
            return
        line = f"… {what}, {seconds:.0f} s"
        if sys.stderr.isatty():
            self.clear()
            self._width = len(line)
            print(line, end="", flush=True, file=sys.stderr)
        else:
            self._next *= 2
            print(line, flush=True, file=sys.stderr)

    def clear(self) -> None:
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", flush=True, file=sys.stderr)
            self._width = 0
