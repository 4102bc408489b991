"""The current folder's worker.py; it stops before or after the effect that PROVE_STOP names."""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from runner.prove import stops


def stopping(effect: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its name and types; the first that comes to the place stops there."""

    @functools.wraps(effect)
    def stopped(*arguments: Any, **named: Any) -> Any:
        before = stops.wanted()[:1] == ["before"]
        if before:
            stops.stop()
        result = effect(*arguments, **named)
        if not before and stops.wanted():
            stops.stop()
        return result

    return stopped


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as for worker.py
    sys.argv = [os.path.join(os.getcwd(), "worker.py")]
    worker = importlib.import_module("worker")
    name = os.environ["PROVE_STOP"].split()[1]
    effect = getattr(worker, name)
    if hasattr(effect, "activity"):  # a durable tool
        effect.activity = stopping(effect.activity)
    else:
        setattr(worker, name, stopping(effect))
    importlib.import_module("hosting.program").run(worker.main)
