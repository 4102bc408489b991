"""Decides on the calls of tools that wait for a person's approval. Each command is its own process."""

import argparse
import json
import time
from uuid import uuid4

from hosting.calls import waiting_at_most
from hosting.program import AgentError, run
from hosting.scheduler import scheduler_client
from hosting.terminal import command, printable, seconds

from approvals import EVENT, Decision, call_of, waiting_calls, waits
from durabletask.client import TaskHubGrpcClient


def main() -> None:
    """Run the command."""
    arguments = parse_arguments()
    with scheduler_client() as client:
        if arguments.command == "list":
            for instance, call in waiting_calls(client).items():
                print(f"{instance}\n  {call.tool} {printable(json.dumps(call.arguments, ensure_ascii=False))}")
        else:
            decide(client, arguments.id, arguments.command == "approve", arguments.reason, arguments.timeout)
            print("Approved." if arguments.command == "approve" else "Rejected.")


def decide(client: TaskHubGrpcClient, instance: str, approved: bool, reason: str | None, timeout: float) -> None:
    """Send a decision, and wait until it has counted. Raises AgentError."""
    state = client.get_orchestration_state(instance)
    if not state or not waits(state):
        raise AgentError(f"No call with the id {instance} waits for a decision.")
    decision = Decision(approved=approved, call=call_of(state).fingerprint, feedback=reason, decision_id=uuid4().hex)
    client.raise_orchestration_event(instance, EVENT, data=decision.model_dump())
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:  # raising an event reports nothing; the custom status does
        with waiting_at_most(left):
            state = client.get_orchestration_state(instance)
        if state and not waits(state):
            if str(decision.decision_id) in str(state.get_custom_status()):
                return
            raise AgentError("The decision does not count: another one came first, or it came too late.")
        time.sleep(0.05)
    raise AgentError(
        f"The scheduler has the decision, but no worker has read it within {timeout:g} s: is one running "
        f"({command('worker.py')})?"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the calls that wait")
    for name in ("approve", "reject"):
        one = commands.add_parser(name, help=f"{name} a call")
        one.add_argument("id", metavar="ID")
        one.add_argument("--timeout", type=seconds, default=10.0, help="until a worker has read it (10 s)")
        one.set_defaults(reason=None)
        if name == "reject":
            one.add_argument("--reason", type=lambda text: text[:20_000], help="what the user shall hear")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
