"""Asks two experts one question, and prints each answer as soon as it is there, or comes back for them later."""

import argparse
import json

from hosting.instance import add_waiting_arguments, announce, start_or_resume
from hosting.program import run
from hosting.scheduler import scheduler_client
from hosting.status import shown
from hosting.terminal import printable
from hosting.waiting import OrchestrationFailed, watch

from durabletask.client import OrchestrationState

ORCHESTRATION = "multi_agent_concurrent_orchestration"
DEMO = "What is temperature?"


def main() -> None:
    """Start the orchestration, or find the one that was started earlier, and print what each expert says."""
    arguments = parse_arguments()
    question = DEMO if arguments.question is None else arguments.question
    printed: set[str] = set()
    with scheduler_client() as client:
        instance = start_or_resume(client, ORCHESTRATION, arguments.instance, input=question)
        if arguments.no_wait:
            announce(instance)
            return
        print(f"Orchestration: {instance}", flush=True)
        try:
            for state in watch(client, instance, arguments.timeout):
                show_new(state, printed)
        except OrchestrationFailed as failure:
            show_new(failure.state, printed)  # one expert's answer is better than none
            raise


def show_new(state: OrchestrationState, printed: set[str]) -> None:
    """Print the question, and the answers that have arrived, unless they are printed already."""
    texts = {"question": state.get_input(), **(state.get_output() or json.loads(shown(state) or "{}"))}
    for name, text in texts.items():
        if name not in printed:
            printed.add(name)
            print(f"\n{name.capitalize()}: {printable(text)}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", help=f"for both experts (default: {DEMO})")
    add_waiting_arguments(parser)
    arguments = parser.parse_args()
    if arguments.instance is not None and arguments.question is not None:
        parser.error("--instance comes back to an orchestration that has its question: give one or the other")
    return arguments


if __name__ == "__main__":
    run(main)
