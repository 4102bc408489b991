"""Where a process of a run stops, and says so, until it is killed or told to go on: two files in the run's folder.

PROVE_STOP names the place: `request 2` (the model has its second request), `half 2` (and has sent half of the answer),
`before send_email`, `after send_email` (the effect of an activity or a tool). Each stops once; a successor does not.
"""

import os
import time
from pathlib import Path

STOPPED, GO, JOURNAL = "stopped", "go", "journal"


def folder() -> Path:
    """The run's folder."""
    return Path(os.environ["PROVE_FOLDER"])


def wanted() -> list[str]:
    """Where to stop, as words; empty if nowhere, or if that was done."""
    return [] if (folder() / STOPPED).exists() else os.environ.get("PROVE_STOP", "").split()


def stop() -> None:
    """Say that the place is reached, and wait until it goes on."""
    (folder() / STOPPED).touch()
    wait()


def wait() -> None:
    """Wait until it goes on."""
    while not (folder() / GO).exists():
        time.sleep(0.002)
