"""Runs a Python program that ends when the launcher ends, even when that is killed with SIGKILL: `tether.py PROGRAM …`.

Linux only: the kernel sends SIGTERM to this process when its parent dies. That still holds for the program that
replaces it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tethered(*program: str) -> list[str]:
    """The command that runs this Python program, ended with this process where the system can do that."""
    tether = ["-S", __file__] if sys.platform == "linux" else []  # -S: it needs no packages, and starts faster
    return [sys.executable, *tether, *program]


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606
