"""What the tests of samples 04 to 07 share: an orchestration as the scheduler sees it."""

import logging

from conftest import Process, Sample
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.client import OrchestrationState


def scheduler_client(sample: Sample) -> DurableTaskSchedulerClient:
    """A client on the sample's task hub, to use in a `with`."""
    return DurableTaskSchedulerClient(
        host_address=sample.settings["ENDPOINT"],
        taskhub=sample.settings["TASKHUB"],
        token_credential=None,
        secure_channel=False,
        logger=logging.getLogger("durabletask"),
    )


def instance_of(client: Process) -> str:
    """The instance id that a client prints when it has started an orchestration."""
    return client.wait_for(r"Orchestration: +(\S+)\n")[1]


def state_of(sample: Sample, instance_id: str) -> OrchestrationState:
    """The orchestration as it is now."""
    with scheduler_client(sample) as client:
        state = client.get_orchestration_state(instance_id)
    assert state
    return state


def complaints(process: Process) -> str:
    """What it says on stderr, without the lines that show progress: a busy machine has some."""
    return "".join(line for line in process.errors.splitlines(keepends=True) if not line.startswith("…"))


def assert_fails(process: Process, code: int, *words: str) -> None:
    """The program ended with that code, and its stderr says this without a traceback."""
    assert process.wait() == code, process.output + process.errors
    assert "Traceback" not in process.errors
    for word in words:
        assert word in process.errors
