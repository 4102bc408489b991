"""A worker for the scheduler's tests: `python durable_program.py ADDRESS HUB`, until it is killed.

Its steps leave a line in the file EFFECTS when they begin, and continue when the file GATE exists.
"""

import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from durabletask import task
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.entities import DurableEntity
from durabletask.worker import ConcurrencyOptions


def note(what: str) -> None:
    """Leave a line that says that a step has begun."""
    with Path(os.environ["EFFECTS"]).open("a") as effects:
        effects.write(f"{what}\n")


def pass_gate() -> None:
    """Wait until the test opens the gate."""
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)


def gated_activity(_: task.ActivityContext, word: str) -> str:
    note(f"activity {word}")
    pass_gate()
    return word.upper()


def call_activity(context: task.OrchestrationContext, word: str) -> Any:
    return (yield context.call_activity(gated_activity, input=word))


def slow_replay(context: task.OrchestrationContext, word: str) -> Any:
    if not context.is_replaying:
        note(f"orchestrator {word}")
        pass_gate()
    yield context.create_timer(timedelta(0))
    return word.upper()


class Counter(DurableEntity):
    """Counts; its steps are slow."""

    def add(self, amount: int) -> int:
        note(f"entity {amount}")
        pass_gate()
        self.set_state(self.get_state(int, 0) + amount)
        return self.get_state(int, 0)


def main() -> None:
    address, hub = sys.argv[1:]
    worker = DurableTaskSchedulerWorker(
        host_address=address,
        taskhub=hub,
        token_credential=None,
        secure_channel=False,
        concurrency_options=ConcurrencyOptions(maximum_thread_pool_workers=32),
    )
    worker.add_activity(gated_activity)
    worker.add_orchestrator(call_activity)
    worker.add_orchestrator(slow_replay)
    worker.add_entity(Counter, "counter")
    worker.start()
    print("Worker ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
