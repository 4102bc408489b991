"""What a person at a terminal sees and types. The text of a model, a mail or a user is data: cleaned here."""

import argparse
import os
import re
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

QUIET_SECONDS = 2.0  # before the first progress line

# Control characters but tab and newline, C1 controls, and the characters that reverse the direction of text.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """The text without lone surrogates (halves of characters), which can be neither sent nor stored."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def printable(text: object) -> str:
    """The text without what would steer a terminal. Everything from outside is printed through this."""
    return _STEERING.sub("", clean(str(text)))


def typed(prompt: str) -> str | None:
    """The line that a person types, with line editing where Python has it; None at Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401  # `input` then knows the arrow keys
    try:
        return clean(input(prompt)).strip()
    except (EOFError, KeyboardInterrupt) as ended:
        print()
        if isinstance(ended, EOFError):
            return None
        raise


def command(program: str = "client.py") -> str:
    """How to start a program of this folder from where the reader is, such as `python client.py`."""
    if launcher := os.environ.get("RUN_AS"):  # set by run.py: `python3 run.py 04`
        return launcher if program == "client.py" else f"{launcher} {program}"
    here = Path(sys.argv[0])
    return f"python {here if (here.name, program) == ('sample.py', 'client.py') else here.with_name(program)}"


def seconds(text: str) -> float:
    """A positive number of seconds, as the `type` of an argument."""
    with suppress(ValueError):
        if 0 < float(text) < 1e9:  # also not NaN
            return float(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a positive number of seconds")


class ProgressLine:
    """What is happening while a client waits, on stderr: on a terminal one line, elsewhere one more now and then."""

    def __init__(self) -> None:
        self._began, self._next = time.monotonic(), QUIET_SECONDS
        self._said, self._width = "", 0

    def show(self, what: str) -> None:
        """Say what is happening, unless it was said a short time ago."""
        if (waited := time.monotonic() - self._began) < QUIET_SECONDS:
            return
        line = f"… {printable(what)}, {waited:.0f} s"
        if sys.stderr.isatty() and len(line) < shutil.get_terminal_size().columns:  # a wrapped one could not be cleared
            self.clear()
            self._width = len(line)
            print(line, end="", flush=True, file=sys.stderr)
        elif what != self._said or waited >= self._next:
            self.clear()
            self._said, self._next = what, 2 * waited
            print(line, flush=True, file=sys.stderr)

    def clear(self) -> None:
        """Make room for other output."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", flush=True, file=sys.stderr)
            self._width = 0
