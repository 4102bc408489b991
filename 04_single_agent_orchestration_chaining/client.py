"""Starts a chain of two agent calls, and waits for its result, or comes back for it later."""

import argparse

from hosting.instance import add_waiting_arguments, announce, start_or_resume
from hosting.program import run
from hosting.scheduler import scheduler_client
from hosting.status import shown
from hosting.terminal import printable
from hosting.waiting import result_of

ORCHESTRATION = "single_agent_chaining_orchestration"


def main() -> None:
    """Start the orchestration, or find the one that was started earlier, and print its two sentences."""
    arguments = parse_arguments()
    with scheduler_client() as client:
        instance = start_or_resume(client, ORCHESTRATION, arguments.instance, input=arguments.topic)
        if arguments.no_wait:
            announce(instance)
            return
        print(f"Orchestration: {instance}", flush=True)
        state = result_of(client, instance, arguments.timeout)
    print(f"First draft:   {printable(shown(state))}")
    print(f"Improved:      {printable(state.get_output())}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topic", nargs="?", help="what the sentence is about (default: learning)")
    add_waiting_arguments(parser)
    arguments = parser.parse_args()
    if arguments.instance is not None and arguments.topic is not None:
        parser.error("--instance comes back to an orchestration that has its topic: give one or the other")
    return arguments


if __name__ == "__main__":
    run(main)
