"""What the tests share: real processes, a scheduler, a model with faults to order, an environment of their own."""

import atexit
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fork_server import Forked, ForkServer, can_start
from scripted_model import ScriptedModel

ROOT = Path(__file__).parent.parent

# A shell that runs the tests in the background has them ignore SIGINT, nohup has them ignore SIGHUP, and whatever they
# start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="the long tests too: many kills, simulations, half a minute's wait"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests, unless there is --all."""
    if not config.getoption("--all"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


# Tests import the double of an orchestration by its name. It is the same file in 04 to 07.
sys.path.insert(0, str(next(ROOT.glob("04_*"))))
importlib.import_module("orchestration_double")
sys.path.pop(0)
sys.excepthook = sys.__excepthook__  # hosting replaces it
for imported in [name for name in sys.modules if name.partition(".")[0] == "hosting"]:
    del sys.modules[imported]

PATIENCE = 60.0  # seconds until a condition that should come true is given up: far more than it takes

# Set to nothing and not removed: a reader's .env would fill in what is missing, and a test could reach a paid model.
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
    """The condition's value as soon as it is true; the test fails if it does not become so."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still waiting after {patience:g} s: {what}"
        time.sleep(0.01)
    return value


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
    """A program under test, its output at hand line by line."""

    def __init__(self, *command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
        parts = [str(part) for part in command]
        env = env or clean_environment()
        self.popen = fork_server().start(parts, cwd, env) if can_start(parts) else start_new(parts, cwd, env)
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

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not heard."""
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self._drain()

    def _drain(self) -> None:
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


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts programs, and stops what is left of them when the test is over."""
    processes: list[Process] = []

    def start_one(*command: str | Path, **options: Any) -> Process:
        processes.append(Process(*command, **options))
        return processes[-1]

    yield start_one
    for process in reversed(processes):
        # A worker takes a second to stop. Nothing else works on the test's task hub, so it may as well be killed.
        process.kill() if isinstance(process.popen, Forked) else process.stop()


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """The address of a scheduler for all tests; each has its own task hub on it."""
    process = Process(sys.executable, "-m", "local_services.scheduler", "--port", "0", "--supervised")
    yield process.wait_for(r"scheduler ready: (\S+)")[1]
    process.stop()


@pytest.fixture
def hub() -> str:
    """The name of a task hub that no other test uses."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    """The offline model without delays, in this process, with faults to order and its requests on record."""
    with ScriptedModel() as scripted:
        yield scripted


class Sample:
    """One sample's folder, with an environment that points at the test's services."""

    def __init__(self, folder: Path, start: Start, settings: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self._start = start

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of its worker and client."""
        return clean_environment(**{**self.settings, **more})

    def start_worker(self, **more: str) -> Process:
        """Start worker.py, and wait until it is ready."""
        worker = self._start(sys.executable, "worker.py", cwd=self.folder, env=self.environment(**more))
        worker.wait_for("Worker ready")
        return worker

    def start_client(self, *arguments: str, program: str = "client.py", **more: str) -> Process:
        """Start client.py, or another of its programs."""
        return self._start(sys.executable, program, *arguments, cwd=self.folder, env=self.environment(**more))

    def run_client(self, *arguments: str, program: str = "client.py", **more: str) -> Process:
        """Run client.py to its end."""
        client = self.start_client(*arguments, program=program, **more)
        assert client.popen.stdin
        client.popen.stdin.close()
        client.wait()
        return client


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Imports a module of a sample, by number and name; the samples' modules share names, so one sample at a time."""
    mine = {"hosting"}
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # hosting replaces it

    def load(number: str, name: str) -> ModuleType:
        (folder,) = ROOT.glob(f"{number}_*")
        mine.update(path.stem for path in folder.glob("*.py"))
        monkeypatch.syspath_prepend(str(folder))
        return importlib.import_module(name)

    yield load
    for name in list(sys.modules):
        if name.partition(".")[0] in mine:
            del sys.modules[name]


@pytest.fixture
def sample(start: Start, scheduler: str, hub: str, model: ScriptedModel) -> Callable[[str], Sample]:
    """Gives a sample by its number, on the test's scheduler, task hub and model."""
    settings = {
        "ENDPOINT": scheduler,
        "TASKHUB": hub,
        "AZURE_OPENAI_ENDPOINT": model.address,
        "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "offline-model",
        "AZURE_OPENAI_API_KEY": "test",
    }

    def by_number(number: str) -> Sample:
        (folder,) = ROOT.glob(f"{number}_*")
        return Sample(folder, start, dict(settings))

    return by_number
