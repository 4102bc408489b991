"""Real processes, the one place where they are killed: for `run.py prove`, and for the tests."""

import atexit
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from runner.addresses import ROOT
from runner.prove.fork_server import Forked, ForkServer, can_start
from runner.tether import tethered

PATIENCE = 60.0  # seconds until a condition that should come true is given up: far more than it takes

# Set to nothing and not removed: a reader's .env would fill in what is missing, and a paid model could be reached.
CLEARED = [
    "ENDPOINT",
    "TASKHUB",
    "AZURE_OPENAI_ENDPOINT",
    "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME",
    "AZURE_OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
    "OPENAI_MODEL",
    "REDIS_CONNECTION_STRING",
    "REDIS_STREAM_TTL_MINUTES",
    "LOG_LEVEL",
    "MODEL_TIMEOUT_SECONDS",
    "RUN_AS",
    "OFFLINE_MODEL_FIRST_TOKEN_SECONDS",
    "OFFLINE_MODEL_TOKEN_SECONDS",
]

STATES = tempfile.TemporaryDirectory(prefix="states-")


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's environment without the reader's settings, and with these; run.py's state is new each time."""
    inherited = {name: value for name, value in os.environ.items() if "OPENAI_" not in name}
    cleared = {**dict.fromkeys(CLEARED, ""), "STATE_DIRECTORY": str(Path(STATES.name, uuid.uuid4().hex))}
    return {**inherited, **cleared, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **settings}


def eventually(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The condition's value as soon as it is true. Raises AssertionError if it does not become so."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still waiting after {patience:g} s: {what}"
        time.sleep(0.01)
    return value


def free_port() -> int:
    """A port for a service that is going to be killed and started again on it.

    Not one that the system may give to a connection meanwhile: it takes those from 32768 up.
    """
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", random.randrange(20000, 32000))) as free:  # noqa: S311
            return free.getsockname()[1]


@cache
def fork_server() -> ForkServer:
    """The one of this process."""
    server = ForkServer()
    atexit.register(server.stop)
    return server


def start_new(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """Start a program with its standard streams in pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8")


class Process:
    """A program with its output at hand, line by line.

    A Python program is forked from a process that has its libraries, which is quick; with `fresh` it is started as a
    user starts it, and ends with this process.
    """

    _not_forked: ClassVar[list["Process"]] = []
    _over: ClassVar[bool] = False  # all were killed, and no more are started

    def __init__(
        self, *command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, fresh: bool = False
    ) -> None:
        assert not self._over
        parts = [str(part) for part in command]
        env = env or clean_environment()
        if fresh and parts[0] == sys.executable:
            parts = tethered(*parts[1:])
        forks = can_start(parts) and not fresh
        self.popen: Any = fork_server().start(parts, cwd, env) if forks else start_new(parts, cwd, env)
        if not forks:
            self._not_forked.append(self)
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=_collect, args=(stream, lines), daemon=True)
            for stream, lines in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def output(self) -> str:
        """Everything it has printed on stdout so far."""
        return "".join(self.out)

    @property
    def errors(self) -> str:
        """Everything it has printed on stderr so far."""
        return "".join(self.err)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until stdout matches; fails at once when the program has ended without."""

        def look() -> re.Match[str] | None:
            ended = self.popen.poll() is not None
            if ended:
                self._drain()
            match = re.search(pattern, self.output)
            assert match or not ended, f"ended without {pattern!r}:\n{self.output}\n{self.errors}"
            return match

        return eventually(look, f"{pattern!r} in {self.popen.args}")

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        code = self.popen.wait(patience)
        self._drain()
        return code

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: it has no chance to clean up."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.wait()

    @classmethod
    def kill_all(cls) -> None:
        """Kill all that this process has started, also while other threads wait for them."""
        cls._over = True
        fork_server().stop()
        for process in list(cls._not_forked):
            process.popen.kill()

    def freeze(self) -> None:
        """SIGSTOP: it does nothing until it is told to continue. Windows does not have that."""
        self.signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not heard."""
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self._drain()

    def end(self) -> None:
        """Stop it, or kill it if it was forked: a worker takes a second to stop, and nothing waits for these."""
        self.kill() if isinstance(self.popen, Forked) else self.stop()

    def _drain(self) -> None:
        if self in self._not_forked:
            self._not_forked.remove(self)
        for reader in self._readers:
            reader.join(5)
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if stream and not stream.closed:
                stream.close()


def _collect(stream: Any, lines: list[str]) -> None:
    try:
        for line in stream:
            lines.append(line)
    except ValueError:
        pass  # closed while it was read
