"""A worker of sample 03 whose tool a test can watch and stop: `python booking_worker.py`, in the sample's folder.

Each run of the tool leaves a line with its key in the file RUNS. At STOP_AT (before, during or after the effect) it
leaves the file STOPPED, and goes no further. More settings: THREADS, STREAM, APPROVAL_SECONDS, FAILURES, TOOL_SECONDS.
"""

import os
import sys
import threading
import time
from datetime import timedelta
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any


def point(name: str) -> None:
    """Stop here for good, if the test wants it."""
    if os.environ.get("STOP_AT") == name:
        Path(os.environ["RUNS"]).with_name("STOPPED").touch()
        threading.Event().wait()


class StoppingPath(type(Path())):
    """Stops before a file that is written gets its name."""

    def replace(self, target: Any) -> Any:
        point("during")
        return super().replace(target)


def watched(function: Any) -> Any:
    """The tool's function, with what the settings say."""
    file = Path(os.environ["RUNS"])

    @wraps(function)
    def run(**arguments: Any) -> Any:
        with file.open("a", encoding="utf-8") as runs:
            runs.write(f"{arguments['key']}\n")
        if file.read_text().count("\n") <= int(os.environ.get("FAILURES") or 0):
            raise ValueError("The restaurant does not answer.")
        time.sleep(float(os.environ.get("TOOL_SECONDS") or 0))
        point("before")
        result = function(**arguments)
        point("after")
        return result

    return run


def main() -> None:
    """Change the sample, and run its worker."""
    sys.path.insert(0, os.getcwd())
    scheduler: Any = import_module("hosting.scheduler")
    scheduler.AGENT_CALLS = int(os.environ.get("THREADS") or scheduler.AGENT_CALLS)
    tools: Any = import_module("tools")
    durable_tool = import_module("durable_tools").durable_tool
    seconds = float(os.environ.get("APPROVAL_SECONDS") or 0)
    function = watched(tools.reserve_table.func.__wrapped__)
    tools.reserve_table = durable_tool(bool(seconds), timedelta(seconds=seconds))(function)
    tools.Path = StoppingPath
    worker: Any = import_module("worker")
    if os.environ.get("STREAM") == "no":
        worker.chat_client = lambda **_: import_module("hosting.chat_client").chat_client()
    import_module("hosting.program").run(worker.main)


if __name__ == "__main__":
    main()
