"""Starts Python programs by forking a process that has imported their libraries: in 0.1 s instead of 1 to 2 s.

In all else they are processes like others: own memory, environment, folder and signals; `kill -9` ends one of them.
"""

import array
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

LIBRARIES = [
    "agent_framework",
    "agent_framework.openai",
    "agent_framework_durabletask",
    "azure.identity",
    "dotenv",
    "durabletask.azuremanaged.client",
    "durabletask.azuremanaged.worker",
    "justhtml",
    "openai",
    "redis.asyncio",
]


def can_start(command: list[str]) -> bool:
    """Whether it is a Python program; on Windows there is no fork."""
    return hasattr(os, "fork") and command[0] == sys.executable and (command[1] in ("-c", "-m") or command[1][0] != "-")


class ForkServer:
    """The process that forks; it ends, and kills what it has started, when this process ends."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fork-")
        self._path = str(Path(self._folder.name, "socket"))
        environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
        command = [sys.executable, __file__, self._path]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        assert self._process.stdout
        self._process.stdout.readline()

    def start(self, command: list[str], cwd: Path, env: dict[str, str]) -> "Forked":
        """Start `python FILE …`, `python -m MODULE …` or `python -c CODE …`."""
        theirs_in, stdin = os.pipe()
        stdout, theirs_out = os.pipe()
        stderr, theirs_err = os.pipe()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        request = json.dumps({"arguments": command[1:], "cwd": str(cwd), "env": env}).encode() + b"\n"
        passed = array.array("i", [theirs_in, theirs_out, theirs_err])
        sent = connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        connection.sendall(request[sent:])
        for number in (theirs_in, theirs_out, theirs_err):
            os.close(number)
        return Forked(command, connection, stdin, stdout, stderr)

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()


class Forked:
    """What the tests use of subprocess.Popen."""

    def __init__(self, args: list[str], connection: socket.socket, stdin: int, stdout: int, stderr: int) -> None:
        self.args = args
        self.stdin = open(stdin, "w", encoding="utf-8")  # noqa: SIM115
        self.stdout = open(stdout, encoding="utf-8")  # noqa: SIM115
        self.stderr = open(stderr, encoding="utf-8")  # noqa: SIM115
        self.returncode: int | Any = None
        self._reports = connection.makefile()
        self._connection = connection
        self._lock = threading.Lock()
        self.pid = int(self._reports.readline())

    def poll(self) -> int | Any:
        """The exit code; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._connection, selectors.EVENT_READ)
                    if not selector.select(timeout):
                        raise subprocess.TimeoutExpired(self.args, timeout or 0)
                self.returncode = int(self._reports.readline())
                self._reports.close()
                self._connection.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


# The process that forks ------------------------------------------------------------------------------------------


def serve(path: str) -> dict[str, Any]:
    """Fork for each request until standard input closes. Returns in the child, with its request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    woken, wakes = socket.socketpair()
    woken.setblocking(False)
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.PollSelector()
    for source in (listener, woken, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if sys.stdin in ready:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if woken in ready:
            woken.recv(4096)
            report_ends(running)
        if listener in ready:
            connection, _ = listener.accept()
            request, descriptors = receive(connection)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                for part in (listener, woken, wakes, connection, *running.values()):
                    part.close()
                return request
            for descriptor in descriptors:
                os.close(descriptor)
            running[pid] = connection
            connection.sendall(b"%d\n" % pid)


def report_ends(running: dict[int, socket.socket]) -> None:
    """Tell the tests the exit codes of the processes that have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as connection, contextlib.suppress(BrokenPipeError):
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the descriptors of the new process's standard streams."""
    text, descriptors, _, _ = socket.recv_fds(connection, 65536, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(65536)
    return json.loads(text), list(descriptors)


def run(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Run the program as `python` would."""
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", errors=errors, write_through=True)
        for number, errors in ((1, "strict"), (2, "backslashreplace"))
    )
    sys.path[1:1] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    option, *rest = arguments
    if option == "-m":
        sys.path[0] = cwd
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    if option == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        program = compile(rest[0], "<string>", "exec")
    else:
        main.__file__ = option
        sys.path[0] = str(Path(option).resolve().parent)
        sys.argv = arguments
        program = compile(Path(option).read_bytes(), option, "exec")
    sys.modules["__main__"] = main
    exec(program, main.__dict__)  # noqa: S102


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    run(**serve(sys.argv[1]))
