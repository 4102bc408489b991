"""A client waits for an orchestration: what it does meanwhile, and its result."""

import sys
import time
from collections.abc import Iterator

from durabletask.client import OrchestrationState, OrchestrationStatus, TaskHubGrpcClient

from .calls import waiting_at_most
from .instance import come_back
from .program import AgentError, setting
from .status import headline
from .terminal import ProgressLine, command


class OrchestrationFailed(AgentError):
    """The orchestration ended FAILED; the message says why, `state` has the rest."""

    def __init__(self, state: OrchestrationState) -> None:
        details = state.failure_details
        while details and details.inner_failure and details.is_caused_by("TaskFailedError"):
            details = details.inner_failure  # the activity's own words
        super().__init__((details and (details.message or details.error_type)) or "It failed without a message.")
        self.state = state


def result_of(client: TaskHubGrpcClient, instance_id: str, timeout: float) -> OrchestrationState:
    """Wait until the orchestration has completed; returns its state. Raises like `watch`."""
    *_, state = watch(client, instance_id, timeout)
    return state


def watch(
    client: TaskHubGrpcClient, instance_id: str, timeout: float, every: float = 1.0
) -> Iterator[OrchestrationState]:
    """Its state whenever the custom status has changed, and last of all when it has completed.

    Args:
        timeout: seconds; what the caller does between two states is not counted.
        every: seconds between two looks at the custom status; the end is seen immediately.

    Raises:
        OrchestrationFailed: it failed.
        AgentError: it was terminated, or has not ended in time.
    """
    progress, deadline, status = ProgressLine(), time.monotonic() + timeout, None
    try:
        while True:
            left = max(0.0, deadline - time.monotonic())
            with waiting_at_most(left):
                state = _look(client, instance_id, min(left, every))
            if state.runtime_status is OrchestrationStatus.FAILED:
                raise OrchestrationFailed(state)
            if state.runtime_status is OrchestrationStatus.TERMINATED:
                raise AgentError(f"{instance_id} was terminated: {state.get_output() or 'no reason given'}")
            if state.runtime_status is OrchestrationStatus.COMPLETED:
                progress.clear()
                yield state
                return
            if state.serialized_custom_status != status:
                status, began = state.serialized_custom_status, time.monotonic()
                progress.clear()
                yield state
                deadline += time.monotonic() - began
                continue  # what the state says may be over: the caller may have talked with a person
            if not left:
                begun = state.runtime_status is not OrchestrationStatus.PENDING
                raise AgentError(f"No result within {timeout:g} s ({_doing(state)}). {come_back(instance_id, begun)}")
            progress.show(_doing(state))
    except KeyboardInterrupt:
        progress.clear()
        print(come_back(instance_id), file=sys.stderr)
        raise
    finally:
        progress.clear()


def _look(client: TaskHubGrpcClient, instance_id: str, seconds: float) -> OrchestrationState:
    """The state at the end, or else after so many seconds."""
    try:
        state = client.wait_for_orchestration_completion(instance_id, timeout=seconds)
    except TimeoutError:
        state = client.get_orchestration_state(instance_id)
    if state is None:
        raise AgentError(f"The scheduler does not know {instance_id} any more: was it purged, or the state reset?")
    return state


def _doing(state: OrchestrationState) -> str:
    if state.runtime_status is OrchestrationStatus.PENDING:
        return f"not begun: is a worker running on task hub '{setting('TASKHUB', 'default')}'? {command('worker.py')}"
    if state.runtime_status is OrchestrationStatus.SUSPENDED:
        return "suspended: it continues when somebody resumes it"
    return headline(state) or "running"
