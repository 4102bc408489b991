"""Starts processes, prints their output, and always ends all of them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from runner.addresses import DASHBOARD, ROOT, SCHEDULER, CannotRun, Service
from runner.tether import tethered

READY_SECONDS = 60.0
LAST_WORD_SECONDS = 3.0  # for a client after Ctrl-C: it may print how to come back
NOTICE_SECONDS = 2.0  # if stopping a worker takes longer, a line says why
HURRIED_SECONDS = 0.3  # for each kind of process, after a second Ctrl-C
STOP_SECONDS = {"client": 2.0, "worker": 10.0, "service": 5.0}  # in this order; the worker's begin after the notice

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


# What runs in the background has its own process group: the terminal's Ctrl-C reaches only the client.
BACKGROUND: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
if sys.platform == "win32":
    BACKGROUND["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
else:
    BACKGROUND["start_new_session"] = True


class Interrupted(Exception):
    """Ctrl-C, or another signal to stop."""


class Process(subprocess.Popen[str]):
    """A running program; a thread prints its output, and calls `news` when it is ready and when it has ended."""

    def __init__(self, kind: str, name: str, command: list[str], news: Callable[[], None], **options: Any) -> None:
        super().__init__(command, encoding="utf-8", errors="replace", **options)
        self.kind = kind  # one of STOP_SECONDS
        self.name = name
        self.needed = name != DASHBOARD.name  # the rest cannot continue without it
        self.ready = ""  # its ready line, once it came
        self.has_ended = False  # and its last line is printed
        self._asked_to_end = False
        threading.Thread(target=self._watch, args=[news], daemon=True).start()

    def _watch(self, news: Callable[[], None]) -> None:
        for line in self.stdout or ():
            is_ready = line.lower().startswith(f"{self.name} ready")
            if self.kind == "worker" or not is_ready:
                note(f"{self.name} │ {line.rstrip()}", faint=True)
            if is_ready:
                self.ready = line.rstrip()
                news()
        self.wait()
        if (self.ready or not self.needed) and not self._asked_to_end:
            note(f"The {self.name} has ended{self.how_it_ended}.")
        self.has_ended = True
        news()

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 plus the signal's number if a signal has ended it. 0 while it runs."""
        return 128 - self.returncode if self.returncode and self.returncode < 0 else self.returncode or 0

    @property
    def how_it_ended(self) -> str:
        """Its exit code in parentheses, or nothing while it runs."""
        return "" if self.returncode is None else f" (exit code {self.exit_code})"

    def ask_to_end(self) -> None:
        """Ask it to end: a service by closing its input, everything else by a signal."""
        self._asked_to_end = True
        if self.stdin:
            self.stdin.close()
        if not self.stdin or not self.ready:  # a service that is still starting does not read yet
            self.terminate()

    def kill_all(self) -> None:
        """Kill it, and all processes that it has started, unless they have the terminal's process group."""
        with suppress(ProcessLookupError):
            if self.kind != "client" and sys.platform != "win32":
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self.kill()
        self.wait()


class Supervisor:
    """The processes of one command. Leaving the `with` ends them.

    Threads and signal handlers only put something into a queue. The main thread takes it out where it is ready for it.
    So Ctrl-C cannot interrupt it after it has started a process and before it has recorded it.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[int] = SimpleQueue()  # signals; 0: a process is ready or has ended
        self._processes: list[Process] = []
        self._hurried = False  # after a second signal
        self.signal = 0  # the signal that interrupted, if any
        self.kept = ""  # what is said then about the scheduler's state

    def __enter__(self) -> "Supervisor":
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores SIGHUP
                signal.signal(number, lambda number, _: self._queue.put(number))
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # run.py blocked them until now
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start_services(self, options: dict[Service, list[str]]) -> dict[Service, str]:
        """Start services with these options; returns their addresses. Raises CannotRun if one does not start."""
        processes = {service: self.start_service(service, *options[service]) for service in options}
        for process in processes.values():
            if not self._is_ready(process):
                raise CannotRun(f"The local {process.name} did not start{process.how_it_ended}.")
        return {service: process.ready.partition(": ")[2] for service, process in processes.items()}

    def start_service(self, service: Service, *options: str, env: dict[str, str] | None = None) -> Process:
        """Start a service without waiting for it."""
        command = [sys.executable, "-m", f"local_services.{service.module}", "--supervised", *options]
        if service is DASHBOARD and (nice := shutil.which("nice")):  # the others first
            command = [nice, *command]
        return self._start("service", service.name, command, cwd=ROOT, env=env, stdin=subprocess.PIPE)

    def start_worker(self, sample: Path, env: dict[str, str]) -> Process:
        """Start the sample's worker and wait until it is ready, or has ended instead."""
        worker = self._start("worker", "worker", tethered("worker.py"), cwd=sample, env=env, stdin=subprocess.DEVNULL)
        self._is_ready(worker)
        return worker

    def run_client(
        self, sample: Path, arguments: list[str], cwd: str, env: dict[str, str], stdin: int | None = None
    ) -> int:
        """Run the sample's client on this terminal, or with another standard input, and return its exit code.

        If the first argument is the name of another program of the sample, such as review.py, that runs instead.
        """
        names_program = bool(arguments) and arguments[0] in {path.name for path in sample.glob("*.py")}
        program, *rest = arguments if names_program else ["client.py", *arguments]
        command = tethered(str(sample / program), *rest)
        client = self._start("client", "client", command, cwd=cwd, env=env, stdin=stdin)
        self._wait_until(lambda: client.has_ended)
        return client.exit_code

    def wait(self) -> None:
        """Wait until a signal comes, or a process that is needed ends."""
        self._wait_until(lambda: any(process.needed and process.has_ended for process in self._processes))

    def stop(self) -> None:
        """End all processes, the client first and the services last.

        After another signal, none gets time to finish. Neither does a worker whose scheduler ends too: its unfinished
        work is stored, and redelivered in the next run.
        """
        hurry_worker = any(process.name == SCHEDULER.name for process in self._processes)
        if self.signal == signal.SIGINT:  # the terminal has sent it to the client too
            self._end_in_time(self._running("client"), LAST_WORD_SECONDS)
        for kind, seconds in STOP_SECONDS.items():
            running = self._running(kind)
            for process in running:
                process.ask_to_end()
            if kind == "worker" and hurry_worker:
                seconds = 0.0
            elif kind == "worker" and not self._end_in_time(running, NOTICE_SECONDS) and not self._hurried:
                note("The worker is finishing its work; press Ctrl-C to stop it immediately.")
            if not self._end_in_time(running, seconds):
                for process in running:
                    process.kill_all()
        self._processes.clear()

    def _start(
        self, kind: str, name: str, command: list[str], *, env: dict[str, str] | None, **options: Any
    ) -> Process:
        if kind != "client":
            env = {**(env or os.environ), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
            options |= BACKGROUND
        self._processes.append(Process(kind, name, command, lambda: self._queue.put(0), env=env, **options))
        return self._processes[-1]

    def _running(self, kind: str) -> list[Process]:
        return [process for process in self._processes if process.kind == kind and not process.has_ended]

    def _is_ready(self, process: Process) -> bool:
        self._wait_until(lambda: bool(process.ready) or process.has_ended, READY_SECONDS)
        return bool(process.ready)

    def _end_in_time(self, processes: list[Process], seconds: float) -> bool:
        """Whether they end within this time, and before another signal comes."""
        seconds = min(seconds, HURRIED_SECONDS) if self._hurried else seconds
        try:
            return self._wait_until(lambda: all(process.has_ended for process in processes), seconds)
        except Interrupted:
            return False

    def _wait_until(self, condition: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Whether the condition comes true within this time. Raises Interrupted if a signal comes before."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with suppress(Empty):  # at most a second at a time: on Windows, Ctrl-C does not interrupt a longer wait
                if number := self._queue.get(timeout=min(left, 1.0)):
                    if not self.signal:
                        note("\nInterrupted, stopping.")
                    self._hurried = self.signal != 0
                    self.signal = number
                    raise Interrupted
        return True


def note(text: str, faint: bool = False) -> None:
    """Print to stderr; stdout is only for the client."""
    plain = not faint or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    if not plain and (sys.platform != "win32" or "WT_SESSION" in os.environ):
        text = f"\x1b[2m{text}\x1b[0m"
    with suppress(OSError):  # the terminal may be closed, and the processes have to be ended all the same
        sys.stderr.write(text + "\n")  # in one piece, since threads call this
        sys.stderr.flush()
