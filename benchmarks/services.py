"""Starts and ends the measured processes: local services and the samples' workers."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from runner.addresses import OFFLINE_MODEL, ROOT
from runner.tether import tethered

START_SECONDS = 60.0
STOP_SECONDS = 3.0


class Failed(Exception):
    """Something does not work; the message says what."""


@dataclass
class Process:
    """A process that is ready.

    Attributes:
        address: the last word of its ready line: a service's address.
        seconds: from its start to that line.
    """

    popen: subprocess.Popen[str]
    address: str
    seconds: float


class Stack:
    """The processes of a benchmark, or of one measurement. Leaving the `with` ends them, the newest first."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._services: dict[tuple[str, ...], Process] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")

    def __enter__(self) -> "Stack":
        for number in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, number):
                signal.signal(getattr(signal, number), signal.default_int_handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for popen in reversed(self._processes):
            popen.terminate()
        for popen in reversed(self._processes):
            self.stop(popen)
        self._folder.cleanup()

    def service(self, module: str, *arguments: str) -> Process:
        """A local service, started on first use. The scheduler writes to disk, as with run.py."""
        if module == "scheduler":
            arguments += ("--state", str(Path(self._folder.name) / "scheduler.db"))
        key = (module, *arguments)
        if key not in self._services:
            command = [sys.executable, "-m", f"local_services.{module}", "--port", "0", "--supervised", *arguments]
            self._services[key] = self.start(command, " ready: ", ROOT, dict(os.environ))
        return self._services[key]

    def model(self, delay: float) -> Process:
        """The offline model; it sends its whole answer after this number of seconds."""
        return self.service("offline_model", "--first-token-delay", f"{delay:g}", "--token-delay", "0")

    def settings(self, sample: Path, model_address: str) -> dict[str, str]:
        """The environment for a worker of the sample and its clients, with a new task hub."""
        settings = {
            "ENDPOINT": self.service("scheduler").address,
            "TASKHUB": f"bench-{uuid.uuid4().hex[:8]}",
            "AZURE_OPENAI_ENDPOINT": model_address,
            **OFFLINE_MODEL,
            "CONTENT_DIRECTORY": self._folder.name,
            "LOG_LEVEL": "",
            "PYTHONPATH": str(sample),
            "PYTHONUNBUFFERED": "1",
        }
        if (sample / "redis_stream_response_handler.py").exists():
            settings["REDIS_CONNECTION_STRING"] = self.service("redis_server").address
        return {**os.environ, **settings}

    def worker(self, sample: Path, env: dict[str, str]) -> Process:
        """Start the sample's worker.py, and wait until it is ready."""
        return self.start(tethered("worker.py"), "Worker ready", sample, env)

    def start(self, command: list[str], ready: str, folder: Path, env: dict[str, str]) -> Process:
        """Start a process, and wait for the line that contains `ready`. Raises Failed if none comes."""
        began = time.perf_counter()
        popen = self.popen(command, folder, env, subprocess.STDOUT)
        patience = threading.Timer(START_SECONDS, popen.kill)
        patience.start()
        output = popen.stdout
        assert output
        said = ""
        for line in output:
            said += line
            if ready in line:
                seconds = time.perf_counter() - began
                patience.cancel()
                # Later output is read and dropped: a full pipe would block the process.
                threading.Thread(target=lambda: [None for _ in output], daemon=True).start()
                return Process(popen, line.split()[-1], seconds)
        patience.cancel()
        raise Failed(f"{' '.join(command[1:4])} in {folder.name} did not start:\n{said[-2000:]}")

    def popen(self, command: list[str], folder: Path, env: dict[str, str], errors: int) -> subprocess.Popen[str]:
        """Start a process of this stack; the terminal's Ctrl-C does not reach it."""
        popen = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._processes.append(popen)
        return popen

    def stop(self, popen: subprocess.Popen[str], patience: float = STOP_SECONDS) -> None:
        """End a process; kill it after this number of seconds."""
        popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            popen.wait(patience)
        popen.kill()
        popen.wait()
        self._processes.remove(popen)
