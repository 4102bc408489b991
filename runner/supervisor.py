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
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Literal

from local_services.service import HOST
from runner.addresses import ROOT, CannotRun, Service

READY_SECONDS = 60.0
LAST_WORD_SECONDS = 3.0  # for a client after Ctrl-C: it may print how to come back
NOTICE_SECONDS = 2.0  # if stopping takes longer, a line says why
HURRIED_SECONDS = 0.3  # for each process, after a second Ctrl-C
STOP_SECONDS = {"client": 2.0, "worker": 10.0, "service": 5.0}  # in this order; the worker's begin after the notice

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]

# On Linux, worker and client get SIGTERM (15) when the supervisor dies, even by SIGKILL. 1 is PR_SET_PDEATHSIG.
# The services see their standard input close.
TETHER = "import ctypes; ctypes.CDLL(None).prctl(1, 15)" if sys.platform == "linux" else ""
WORKER = f"""
{TETHER}
import os, sys
os.execv(sys.executable, [sys.executable, "worker.py"])
"""
# On Ctrl-C, Python would print a traceback until the client has imported its libraries and can handle the signal.
# It imports most of them while the worker starts. Then it waits for a byte from a pipe.
CLIENT = f"""
import os, sys
sys.excepthook = lambda kind, *rest: kind is KeyboardInterrupt or sys.__excepthook__(kind, *rest)
{TETHER}
import runpy
if gate := int(sys.argv[1]):
    import agent_framework_durabletask, durabletask.azuremanaged.client
    os.read(gate, 1) or sys.exit()
    os.close(gate)
del sys.argv[:2]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


Kind = Literal["client", "worker", "service"]


class Interrupted(Exception):
    """Ctrl-C, or another signal to stop."""


@dataclass
class Process:
    """A running program, and what is known about it."""

    kind: Kind
    name: str
    popen: subprocess.Popen[str]
    ready: str = ""  # its ready line, once it came
    exit_code: int | None = None
    asked_to_end: bool = False
    needed: bool = True  # the rest cannot continue without it
    gate: int = 0  # for a client that waits: the end of the pipe to write to

    def ask_to_end(self) -> None:
        """Ask it to end: a service by closing its input, everything else by a signal."""
        self.asked_to_end = True
        if self.popen.stdin:
            self.popen.stdin.close()
        if not self.popen.stdin or not self.ready:  # a service that is still starting does not read yet
            self.popen.terminate()

    @property
    def how_it_ended(self) -> str:
        """Its exit code in parentheses, or nothing while it runs."""
        return "" if self.exit_code is None else f" (exit code {shell_code(self.exit_code)})"

    def kill(self) -> None:
        """Kill it, and all processes that it has started."""
        with suppress(ProcessLookupError):
            if self.kind != "client" and sys.platform != "win32":
                os.killpg(self.popen.pid, signal.SIGKILL)
            else:
                self.popen.kill()
        self.exit_code = self.popen.wait()


class Supervisor:
    """The processes of one command. Leaving the `with` ends them.

    Threads and signal handlers only put events into one queue. The main thread takes them out where it is ready for
    them. So Ctrl-C cannot interrupt it after it has started a process and before it has recorded it.
    """

    def __init__(self) -> None:
        self._events: SimpleQueue[int | tuple[Process, str | None]] = SimpleQueue()
        self._processes: list[Process] = []
        self.signal = 0  # the signal that interrupted, if any
        self._hurried = False  # after a second signal

    def __enter__(self) -> "Supervisor":
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:  # nohup ignores SIGHUP
                signal.signal(number, lambda number, _: self._events.put(number))
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # run.py blocked them until now
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start_services(self, ports: dict[Service, int], options: dict[Service, list[str]]) -> dict[Service, str]:
        """Start services, each on its port (0: any free one) and with its options; returns their addresses.

        Raises CannotRun if one does not start.
        """
        processes = {
            service: self._start_service(service, port, dict(os.environ), options.get(service, []))
            for service, port in ports.items()
        }
        for process in processes.values():
            self._wait_until(lambda p=process: bool(p.ready) or p.exit_code is not None, READY_SECONDS)
            if not process.ready:
                raise CannotRun(f"The local {process.name} did not start{process.how_it_ended}.")
        return {service: process.ready.partition(": ")[2] for service, process in processes.items()}

    def start_beside(self, service: Service, port: int, env: dict[str, str]) -> str:
        """Start a service on this port without waiting for it; it may fail. Returns its address."""
        self._start_service(service, port, env, [], urgent=False).needed = False
        return f"http://{HOST}:{port}"

    def start_worker(self, sample: Path, env: dict[str, str]) -> Process:
        """Start the sample's worker and wait until it is ready, or has ended instead."""
        command = [sys.executable, *(["-c", WORKER] if TETHER else ["worker.py"])]
        worker = self._start("worker", "worker", command, cwd=sample, env=env, stdin=subprocess.DEVNULL)
        self._wait_until(lambda: bool(worker.ready) or worker.exit_code is not None, READY_SECONDS)
        return worker

    def start_client(
        self, sample: Path, arguments: list[str], cwd: str, env: dict[str, str], stdin: int | None, waits: bool = True
    ) -> Process:
        """Start the sample's client on this terminal, or with another standard input.

        If the first argument is the name of another program of the sample, such as review.py, that is started instead.
        With `waits` it imports its libraries and then waits for `run_client`. (Not on Windows, where it may ask before
        the worker is ready; the scheduler keeps the question.)
        """
        readable, writable = os.pipe() if waits and sys.platform != "win32" else (0, 0)
        names_program = bool(arguments) and arguments[0] in {path.name for path in sample.glob("*.py")}
        program, *rest = arguments if names_program else ["client.py", *arguments]
        command = [sys.executable, "-c", CLIENT, str(readable), str(sample / program), *rest]
        passed = [readable] if readable else []
        popen = subprocess.Popen(command, cwd=cwd, env=env, stdin=stdin, text=True, pass_fds=passed)
        if readable:
            os.close(readable)
        client = Process("client", "client", popen, gate=writable)
        self._watch(client)
        return client

    def run_client(self, client: Process) -> int:
        """Let the client run until it ends; returns its exit code."""
        if client.gate:
            with suppress(BrokenPipeError):  # it has ended already
                os.write(client.gate, b"!")
            os.close(client.gate)
        try:
            self._wait_until(lambda: client.exit_code is not None)
        except Interrupted:
            if self.signal == signal.SIGINT:  # the terminal has sent it to the client too
                self._wait_for_end([client], LAST_WORD_SECONDS)
            raise
        return shell_code(client.exit_code)

    def wait(self) -> None:
        """Print what the processes print, until a signal comes or one of them ends."""
        self._wait_until(lambda: any(process.needed and process.exit_code is not None for process in self._processes))

    def stop(self, hurry: bool = False) -> None:
        """End all processes, the client first and the services last.

        With `hurry`, or after another signal, a worker gets no time to finish its work.
        """
        for kind, seconds in STOP_SECONDS.items():
            if hurry and kind == "worker":
                seconds = 0.0
            running = [process for process in self._processes if process.kind == kind and process.exit_code is None]
            for process in running:
                process.ask_to_end()
            if not self._wait_for_end(running, seconds):
                for process in running:
                    process.kill()
        self._processes.clear()

    def _start_service(
        self, service: Service, port: int, env: dict[str, str], options: list[str], urgent: bool = True
    ) -> Process:
        command = [sys.executable, "-m", f"local_services.{service.module}", "--port", str(port), "--supervised"]
        command += options
        if not urgent and (nice := shutil.which("nice")):
            command = [nice, *command]
        return self._start("service", service.name, command, cwd=ROOT, env=env, stdin=subprocess.PIPE)

    def _start(self, kind: Kind, name: str, command: list[str], *, env: dict[str, str], **options: Any) -> Process:
        # In its own process group: the terminal's Ctrl-C reaches only the client. The others are stopped after it.
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options["start_new_session"] = True
        env = env | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
        process = Process(kind, name, subprocess.Popen(command, env=env, **output, **options))
        self._watch(process)
        return process

    def _watch(self, process: Process) -> None:
        self._processes.append(process)

        def watch() -> None:
            for line in process.popen.stdout or ():
                self._events.put((process, line.rstrip()))
            process.popen.wait()
            self._events.put((process, None))

        threading.Thread(target=watch, daemon=True).start()

    def _wait_until(self, condition: Callable[[], bool], seconds: float = float("inf")) -> bool:
        """Handle events until the condition holds; False if it does not in time. Raises Interrupted."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with suppress(Empty):  # at most a second at a time: on Windows, Ctrl-C does not interrupt a longer wait
                self._take_in(self._events.get(timeout=min(left, 1.0)))
        return True

    def _wait_for_end(self, processes: list[Process], seconds: float) -> bool:
        """Whether they end in time, and before another signal comes."""

        def ended() -> bool:
            return all(process.exit_code is not None for process in processes)

        try:
            if self._hurried:
                return self._wait_until(ended, HURRIED_SECONDS)
            is_worker = bool(processes) and processes[0].kind == "worker"
            if is_worker and seconds > NOTICE_SECONDS and not self._wait_until(ended, NOTICE_SECONDS):
                note("The worker is finishing its work; press Ctrl-C to stop it immediately.")
            return self._wait_until(ended, seconds)
        except Interrupted:
            return False

    def _take_in(self, event: int | tuple[Process, str | None]) -> None:
        if isinstance(event, int):
            if not self.signal:
                note("\nInterrupted, stopping.")
            self._hurried = self.signal != 0
            self.signal = event
            raise Interrupted
        process, line = event
        if line is None:
            process.exit_code = process.popen.returncode
            if (process.ready or not process.needed) and not process.asked_to_end:
                note(f"The {process.name} has ended{process.how_it_ended}.")
        elif process.kind == "service" and line.startswith(f"{process.name} ready: "):
            process.ready = line
        else:
            if line.startswith("Worker ready"):
                process.ready = line
            note(f"{process.name} │ {line}", faint=True)


def shell_code(exit_code: int | None) -> int:
    """An exit code as a shell reports it: 128 plus the signal's number for a process that a signal ended."""
    return 128 - exit_code if exit_code and exit_code < 0 else exit_code or 0


def note(text: str, faint: bool = False) -> None:
    """Print to stderr; stdout is only for the client."""
    with suppress(OSError):  # the terminal may be closed, and the processes have to be ended all the same
        print(f"\x1b[2m{text}\x1b[0m" if faint and _stderr_has_styles() else text, file=sys.stderr, flush=True)


def _stderr_has_styles() -> bool:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not plain and (sys.platform != "win32" or "WT_SESSION" in os.environ)
