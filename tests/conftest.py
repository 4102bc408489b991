"""What the tests share: real processes, a scheduler, a model with faults to order, an environment of their own."""

import importlib
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scripted_model import ScriptedModel

from runner.addresses import ROOT as ROOT
from runner.prove.processes import PATIENCE as PATIENCE
from runner.prove.processes import Process, clean_environment
from runner.prove.processes import eventually as eventually

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
        process.end()


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
