"""An orchestration has an instance id: by it a client starts one, leaves, and comes back."""

import argparse
import sys
from typing import Any

from durabletask.client import TaskHubGrpcClient

from .program import UsageError, setting
from .terminal import command, seconds


def add_waiting_arguments(parser: argparse.ArgumentParser, timeout: float = 120.0) -> None:
    """Add --no-wait, --instance and --timeout."""
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--no-wait", action="store_true", help="start, print the instance id, and leave")
    way.add_argument("--instance", metavar="ID", help="come back to what was started earlier")
    parser.add_argument(
        "--timeout", type=seconds, default=timeout, metavar="SECONDS", help=f"how long to wait ({timeout:g})"
    )


def start_or_resume(client: TaskHubGrpcClient, orchestration: str, instance: str | None, input: Any = None) -> str:
    """Start an orchestration, or find the one with this instance id; returns the id. Raises UsageError."""
    if instance is None:
        return client.schedule_new_orchestration(orchestration, input=input)
    state = client.get_orchestration_state(instance, fetch_payloads=False)
    if state is None or state.name != orchestration:
        hub = setting("TASKHUB", "default")
        raise UsageError(f"Task hub '{hub}' has no {orchestration} with the instance id '{instance}'.")
    return instance


def announce(instance_id: str) -> None:
    """For --no-wait: the id alone on stdout, for scripts; how to come back on stderr."""
    print(instance_id, flush=True)
    print(come_back(instance_id), file=sys.stderr)


def come_back(instance_id: str, begun: bool = True) -> str:
    """What to tell a person who leaves."""
    what = "The work continues without this client" if begun else "It begins when a worker runs"
    return f"{what}. To come back: {command()} --instance {instance_id}"
