"""Asks two experts one question, and waits for both answers, or comes back for them later."""

import argparse

from steps import OrchestrationFailed, add_waiting_arguments, announce, result_of, start_or_resume
from support import UsageError, run, scheduler_client

ORCHESTRATION = "multi_agent_concurrent_orchestration"
DEMO = "What is temperature?"


def main() -> None:
    """Start the orchestration, or find the one that was started earlier, and print what each expert says."""
    arguments = parse_arguments()
    with scheduler_client() as client:
        question = DEMO if arguments.question is None else arguments.question
        instance = start_or_resume(client, ORCHESTRATION, input=question, instance=arguments.instance)
        if arguments.no_wait:
            announce(instance)
            return
        print(f"Orchestration: {instance}", flush=True)
        try:
            state = result_of(client, instance, arguments.timeout)
        except OrchestrationFailed as failure:
            show(failure.state.get_custom_status() or {})  # one expert's answer is better than none
            raise
    print(f"Question:      {state.get_input()}")
    show(state.get_output())


def show(answers: dict[str, str]) -> None:
    """Print each expert's answer."""
    for expert, answer in answers.items():
        print(f"\n{expert.capitalize()}: {answer}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line. Raises UsageError where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", help=f"for both experts (default: {DEMO})")
    add_waiting_arguments(parser)
    arguments = parser.parse_args()
    if arguments.instance is not None and arguments.question is not None:
        raise UsageError("--instance comes back to an orchestration that has its question: give one or the other.")
    return arguments


if __name__ == "__main__":
    run(main)
