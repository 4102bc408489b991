"""run.py: the list, a sample, all samples, only the services, and the installation before them.

What needs processes runs in a copy of the launcher, with replacements for the samples, the scheduler and the model. The
last test installs the real ones in a fresh copy of the repository.
"""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Process, Start, clean_environment, eventually
from dotenv import dotenv_values
from scripted_model import ScriptedModel

import runner.__main__ as launcher
from local_services.scheduler.ownership import Ownership
from runner import addresses, state
from runner.addresses import (
    MODEL,
    OFFLINE_MODEL,
    REDIS,
    SCHEDULER,
    SERVICES,
    CannotRun,
    Service,
    environment,
    ports_to_start,
    settings,
)
from runner.state import State
from runner.supervisor import Supervisor

SERVICE = """
from pathlib import Path
from local_services.service import listening_socket, report_ready, service_arguments, stop_order

parser = service_arguments("A test service.", 0)
parser.add_argument("--state", type=Path)
parser.add_argument("--share", action="store_true")
arguments = parser.parse_args()
stopped = stop_order(arguments.supervised)
if arguments.state:
    arguments.state.touch()
listener = listening_socket(arguments.port)
listener.listen()
report_ready("{name}", "http://127.0.0.1:" + str(listener.getsockname()[1]))
stopped.wait()
"""
NAMES = "ENDPOINT TASKHUB AZURE_OPENAI_ENDPOINT AZURE_OPENAI_CHAT_DEPLOYMENT_NAME AZURE_OPENAI_API_KEY"
WORKER = f"""
\"\"\"Hosts a replacement,
for the tests. It does nothing.\"\"\"
import os, time
for name in "{NAMES} REDIS_CONNECTION_STRING".split():
    print(name, os.environ.get(name))
print("Worker ready")
time.sleep(600)
"""
CLIENT = """
import os, sys
print("client", sys.argv[1:], "in", os.getcwd(), "reads", repr(sys.stdin.read()), "again:", os.environ["RUN_AS"])
"""
DASHBOARD = """
import os, sys
print(os.environ.get("ENDPOINT"), os.environ.get("TASKHUB"), sys.argv[sys.argv.index("--port") + 1], flush=True)
sys.stdin.read()
"""
WAITING = "import time; print('client waits', flush=True); time.sleep(600)"


# `python -m runner`. Where nohup runs the tests, what they start would ignore SIGHUP, as they do.
RUNNER = """
import runpy, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
runpy.run_module("runner", run_name="__main__")
"""


class Project:
    """A repository with replacements for samples and services."""

    def __init__(self, root: Path, start: Start) -> None:
        self.root = root
        self._start = start
        self.mark = uuid.uuid4().hex  # in the environment of all processes that its commands start
        for package in ("runner", "local_services"):
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.write("local_services/offline_model/__init__.py", "")
        self.write("local_services/offline_model/__main__.py", SERVICE.format(name="model"))
        self.write("local_services/scheduler/__init__.py", "")
        self.write("local_services/scheduler/__main__.py", SERVICE.format(name="scheduler"))
        self.write("local_services/dashboard/__main__.py", DASHBOARD)

    def write(self, path: str, text: str) -> Path:
        """Write one of the project's files."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip())
        return file

    def add_sample(self, name: str, worker: str = WORKER, client: str = CLIENT, requirements: str = "") -> None:
        """Add a sample with these files."""
        self.write(f"{name}/worker.py", worker)
        self.write(f"{name}/client.py", client)
        self.write(f"{name}/requirements.txt", requirements)

    def start(self, *arguments: str, **environment: str) -> Process:
        """Start what run.py starts after the installation."""
        env = clean_environment(MARK=self.mark, **environment)
        return self._start(sys.executable, "-c", RUNNER, *arguments, cwd=self.root, env=env)

    def run(self, *arguments: str, **environment: str) -> Process:
        """Run it to its end, with nothing to read."""
        process = self.start(*arguments, **environment)
        assert process.popen.stdin
        process.popen.stdin.close()
        process.wait()
        assert "Traceback" not in process.errors
        return process

    def left_behind(self) -> list[str]:
        """The processes that its commands started and that are still running."""
        return [text for text in map(environment_of, Path("/proc").glob("[0-9]*")) if f"MARK={self.mark}" in text]


IN_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def in_terminal(start: Start, *arguments: str, cwd: Path, env: dict[str, str]) -> Process:
    """Start `python -m runner` in a new terminal."""
    command = [sys.executable, "-c", IN_TERMINAL, sys.executable, "-m", "runner", *arguments]
    return start(*command, cwd=cwd, env=env)


def type_in(command: Process, text: str) -> None:
    """Type this in the command's terminal."""
    assert command.popen.stdin
    command.popen.stdin.write(text)
    command.popen.stdin.flush()


def environment_of(process: Path) -> str:
    try:
        return (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""  # it has ended


@pytest.fixture
def project(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project, which is the collection for the launcher's code in this process too."""
    project = Project(tmp_path / "project", start)
    for module in (addresses, launcher, state):
        monkeypatch.setattr(module, "ROOT", project.root)
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("STATE_DIRECTORY", "")
    return project


# The list, and the names of samples ------------------------------------------------------------------------------


def test_the_catalog_needs_no_installation(project: Project, start: Start) -> None:
    project.add_sample("01_first")
    (project.root / "02_second").mkdir()
    shutil.copy(ROOT / "run.py", project.root)
    command = start(sys.executable, project.root / "run.py", cwd=project.root.parent)
    assert command.wait() == 0
    assert re.search(r"^  01_first +Hosts a replacement, for the tests$", command.output, re.MULTILINE)
    assert re.search(r"^  up +\S", command.output, re.MULTILINE)
    assert "02_second" not in command.output  # it has no worker
    assert not (project.root / ".venv").exists()


def test_help_is_the_catalog(capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher.main(["--help"]) == 0
    assert capsys.readouterr().out == launcher.catalog() + "\n"


@pytest.mark.parametrize("name", ["01", "01_first", "01_first/", "./01_first"])
def test_a_sample_is_known_by_any_unique_prefix(project: Project, name: str) -> None:
    project.add_sample("01_first")
    project.add_sample("02_second")
    assert launcher.find_sample(name) == project.root / "01_first"


def test_other_names_are_refused(project: Project) -> None:
    project.add_sample("01_first")
    project.add_sample("02_second")
    with pytest.raises(CannotRun, match=r"^'0' may be 01_first or 02_second\.$"):
        launcher.find_sample("0")
    command = project.run("9")
    assert command.popen.returncode == 2
    assert command.errors == (
        "There is no sample or command '9'. There are: 01_first, 02_second, all, up, reset, test, prove, bench.\n"
    )


# One sample ------------------------------------------------------------------------------------------------------


def test_stdout_is_the_clients_and_stderr_tells_the_rest(project: Project, tmp_path: Path) -> None:
    project.add_sample("01_first")
    command = project.start("01", "two words", "--option", RUN_FROM=str(tmp_path), STATE_DIRECTORY="")
    eventually(lambda: "dashboard │ " in command.errors, "the dashboard")
    assert command.popen.stdin
    command.popen.stdin.close()
    assert command.wait() == 0
    again = "python3 project/run.py 01"
    assert command.output == f"client ['two words', '--option'] in {tmp_path} reads '' again: {again}\n"
    scheduler, model, dashboard = re.findall(r"(http://127\.0\.0\.1:\d+)", command.err[0])
    started = f"Started scheduler {scheduler} (state in project/.state) · model {model} (offline)"
    assert command.err[0] == f"{started} · dashboard {dashboard}\n"
    assert [line for line in command.errors.splitlines() if line.startswith("worker")] == [
        f"worker │ ENDPOINT {scheduler}",
        "worker │ TASKHUB 01_first",
        f"worker │ AZURE_OPENAI_ENDPOINT {model}",
        "worker │ AZURE_OPENAI_CHAT_DEPLOYMENT_NAME offline-model",
        "worker │ AZURE_OPENAI_API_KEY local",
        "worker │ REDIS_CONNECTION_STRING",
        "worker │ Worker ready",
    ]
    assert f"dashboard │ {scheduler} 01_first {dashboard.rpartition(':')[2]}\n" in command.err
    assert len(command.err) == 9
    assert project.left_behind() == []
    assert (project.root / ".state").stat().st_mode & 0o777 == 0o700  # the state is for its owner alone
    assert (project.root / ".state" / "scheduler.db").exists()


def test_the_first_argument_may_name_another_program_and_its_exit_code_is_the_commands(project: Project) -> None:
    project.add_sample("01_first", client="import os; os.kill(os.getpid(), 9)")
    project.write("01_first/review.py", "import sys; print(sys.argv[1:]); exit(2)")
    review = project.run("01", "review.py", "list")
    assert (review.popen.returncode, review.output) == (2, "['list']\n")
    assert project.run("01", "list", "review.py").popen.returncode == 137


def test_the_command_that_is_shown_fits_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_FROM", str(ROOT / "01_single_agent"))
    assert launcher.run_py() == "python3 ../run.py"


def test_the_clients_help_starts_nothing_else(project: Project) -> None:
    project.add_sample("01_first")
    command = project.run("01", "--help")
    assert command.output.startswith("client ['--help']")
    assert command.errors == ""


def test_a_worker_that_does_not_start(project: Project) -> None:
    project.add_sample("01_first", worker="import sys; sys.exit('what is missing')", client="print('never')")
    command = project.run("01")
    assert command.popen.returncode == 1
    assert command.output == ""
    assert "worker │ what is missing\nThe worker did not start (exit code 1).\n" in command.errors
    assert project.left_behind() == []


def test_a_worker_that_dies_while_the_client_runs(project: Project, tmp_path: Path) -> None:
    # The client continues: another worker could answer it.
    worker = "import os; print('Worker ready'); os.read(os.open(os.environ['PIPE'], os.O_RDONLY), 1); os._exit(9)"
    client = "import os; os.write(os.open(os.environ['PIPE'], os.O_WRONLY), b'.'); print(input())"
    project.add_sample("01_first", worker, client)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = project.start("01", PIPE=str(pipe))
    eventually(lambda: "The worker has ended (exit code 9).\n" in command.errors, "the news of the worker")
    assert command.popen.stdin
    command.popen.stdin.write("an answer\n")
    command.popen.stdin.flush()
    assert command.wait() == 0
    assert command.output == "an answer\n"


def test_a_service_that_does_not_start(project: Project) -> None:
    project.add_sample("01_first")
    project.write("local_services/offline_model/__main__.py", "import sys; sys.exit('no reason')")
    command = project.run("01")
    assert command.popen.returncode == 2
    assert "model │ no reason\nThe local model did not start (exit code 1).\n" in command.errors
    assert project.left_behind() == []


# Which service is started ----------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def silent() -> int:
    """A port on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("service", "env", "expected"),
    [
        (SCHEDULER, {}, "any port"),
        (SCHEDULER, {"ENDPOINT": ""}, "any port"),
        (SCHEDULER, {"ENDPOINT": "http://localhost:LISTENING"}, "as it is"),
        (SCHEDULER, {"ENDPOINT": "http://localhost:SILENT"}, "that port"),
        (SCHEDULER, {"ENDPOINT": "http://127.0.0.1:SILENT/"}, "that port"),
        (MODEL, {"OPENAI_BASE_URL": "http://127.0.0.1:SILENT/v1"}, "any port"),  # without a key it does not count
        (MODEL, {"OPENAI_BASE_URL": "http://127.0.0.1:SILENT/v1", "OPENAI_API_KEY": "k"}, "that port"),
        (MODEL, {"OPENAI_BASE_URL": "http://127.0.0.1:LISTENING/v1", "OPENAI_API_KEY": "k"}, "as it is"),
        (
            MODEL,
            {
                "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:LISTENING",
                "OPENAI_BASE_URL": "http://127.0.0.1:SILENT",
                "OPENAI_API_KEY": "k",
            },
            "as it is",
        ),
        (REDIS, {}, "any port"),
        (REDIS, {"REDIS_CONNECTION_STRING": "redis://:secret@localhost:LISTENING/0"}, "as it is"),
        (REDIS, {"REDIS_CONNECTION_STRING": "rediss://localhost:SILENT"}, "that port"),
    ],
)
def test_which_service_is_started(
    project: Project, service: Service, env: dict[str, str], expected: str, listening: int, silent: int
) -> None:
    project.add_sample("03_third", requirements="openai>=3\nredis>=8,<9\n")
    env = {name: url.replace("LISTENING", str(listening)).replace("SILENT", str(silent)) for name, url in env.items()}
    ports, found = ports_to_start(project.root / "03_third", env)
    assert ports.get(service) == {"any port": 0, "as it is": None, "that port": silent}[expected]
    assert (service in found) == (expected == "as it is")


def test_redis_is_only_for_a_sample_that_requires_it(project: Project) -> None:
    project.add_sample("01_first", requirements="openai>=3\n")
    assert ports_to_start(project.root / "01_first", {}) == ({SCHEDULER: 0, MODEL: 0}, {})


def test_a_service_named_elsewhere_must_answer(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "CONNECT_SECONDS", 0.1)
    project.add_sample("03_third", requirements="redis>=8,<9\n")
    elsewhere = {"REDIS_CONNECTION_STRING": "redis://user:secret@cache.invalid"}
    with pytest.raises(CannotRun, match=r"REDIS_CONNECTION_STRING names redis://cache\.invalid, and nothing answers"):
        ports_to_start(project.root / "03_third", elsewhere)


@pytest.mark.parametrize("text", ["localhost:8080", "http://", "http://localhost:port", "somewhere"])
def test_an_address_must_be_one(text: str) -> None:
    with pytest.raises(CannotRun, match="ENDPOINT is not an address such as http://localhost:8080"):
        addresses.named(SCHEDULER, {"ENDPOINT": text})


@pytest.mark.parametrize(
    ("env", "started", "changed"),
    [
        ({}, {}, OFFLINE_MODEL),
        ({"AZURE_OPENAI_API_KEY": "real"}, {MODEL: "A"}, {**OFFLINE_MODEL, "AZURE_OPENAI_ENDPOINT": "A"}),
        (
            {"AZURE_OPENAI_ENDPOINT": "http://localhost:1", "AZURE_OPENAI_API_KEY": "real"},
            {},
            {**OFFLINE_MODEL, "AZURE_OPENAI_API_KEY": "real"},
        ),
        ({"AZURE_OPENAI_ENDPOINT": "https://example.invalid"}, {}, {}),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://localhost:1"}, {MODEL: "A"}, {}),
        ({"OPENAI_API_KEY": "k"}, {SCHEDULER: "S"}, {"ENDPOINT": "S", "TASKHUB": "01_first"}),
        ({"OPENAI_API_KEY": "k", "TASKHUB": "default"}, {SCHEDULER: "S"}, {"ENDPOINT": "S", "TASKHUB": "01_first"}),
        ({"OPENAI_API_KEY": "k", "TASKHUB": "mine"}, {SCHEDULER: "S"}, {"ENDPOINT": "S", "TASKHUB": "mine"}),
        ({"OPENAI_API_KEY": "k", "TASKHUB": "default", "ENDPOINT": "S"}, {}, {}),
    ],
)
def test_what_worker_and_client_are_told(
    env: dict[str, str], started: dict[Service, str], changed: dict[str, str]
) -> None:
    assert settings(Path("01_first"), env, started) == env | changed


def test_the_environment_wins_over_env_files(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write(".env", "ENDPOINT=http://outer\nTASKHUB=outer\nLOG_LEVEL=outer\n")
    project.write("01_first/.env", "TASKHUB=inner\nLOG_LEVEL=inner\n")
    for name in ("ENDPOINT", "TASKHUB", *MODEL_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOG_LEVEL", "theirs")
    env = environment(project.root / "01_first")
    assert [env[name] for name in ("ENDPOINT", "TASKHUB", "LOG_LEVEL")] == ["http://outer", "inner", "theirs"]


MODEL_SETTINGS = [name for kind, others in addresses.MODELS.items() for name in (kind, *others)]


def test_a_model_that_the_environment_selects_has_priority_as_a_whole(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(".env", "AZURE_OPENAI_ENDPOINT=http://127.0.0.1:9\nAZURE_OPENAI_API_KEY=key\nOPENAI_MODEL=of-file\n")
    for name in MODEL_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    env = environment(project.root / "01_first")
    assert {name: env[name] for name in MODEL_SETTINGS if name in env} == {
        "OPENAI_API_KEY": "theirs",
        "OPENAI_MODEL": "of-file",
    }


def test_the_example_env_file_names_the_local_services() -> None:
    example = dotenv_values(ROOT / ".env.example")
    assert {service.variable: f":{service.port}" for service in SERVICES}.items() <= {
        name: value[value.rindex(":") :] for name, value in example.items() if value and ":" in value
    }.items()
    assert OFFLINE_MODEL.items() <= example.items()
    assert example["TASKHUB"] == "default"
    assert len(example) == 6


# What is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "folder", "shown"),
    [("", ".state", ".state"), ("kept/here", "kept/here", "kept/here"), ("/elsewhere", "/elsewhere", "/elsewhere")],
)
def test_a_setting_moves_the_state(
    project: Project, monkeypatch: pytest.MonkeyPatch, setting: str, folder: str, shown: str
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", setting)
    assert State().folder == project.root / folder
    assert str(State()) == shown


def test_a_folder_that_cannot_hold_the_state(project: Project) -> None:
    project.add_sample("01_first")
    project.write("taken", "by a file")
    refused = project.run("01", STATE_DIRECTORY="taken/state")
    assert (refused.popen.returncode, refused.output) == (2, "")
    assert (
        refused.errors
        == "No state can be kept in taken/state (Not a directory). Set STATE_DIRECTORY to another folder.\n"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the lock ends with its process
def test_reset_keeps_a_copy_until_the_next_one(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder, copy = project.root / ".state", project.root / ".state" / "before-reset"

    def reset(*arguments: str) -> tuple[int, str]:
        return launcher.main(["reset", *arguments]), capsys.readouterr().err

    assert reset("--yes") == (0, "There is no state in .state.\n")
    assert not folder.exists()
    project.write(".state/scheduler.db", "old")
    project.write(".state/scheduler.db-wal", "old")
    assert reset() == (2, "`reset` asks first, and needs a terminal for that. `reset --yes` does not ask.\n")
    assert reset("--yes") == (0, "Removed. A copy is in .state/before-reset until the next reset.\n")
    assert sorted(path.name for path in copy.iterdir()) == ["scheduler.db", "scheduler.db-wal"]
    project.write(".state/scheduler.db", "new")
    scheduler = Ownership(str(folder / "scheduler.db"))
    scheduler.take()
    assert reset("--yes") == (
        2, "A scheduler uses the state in .state. Stop it first, with Ctrl-C in its run.py.\n",
    )  # fmt: skip
    del scheduler
    assert reset("--yes")[0] == 0
    assert [(path.name, path.read_text()) for path in copy.iterdir()] == [("scheduler.db", "new")]
    assert reset("--yes") == (0, "There is no state in .state.\n")


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1), ("\x03", 1), ("\x04", 1)])
def test_reset_asks_first(project: Project, start: Start, answer: str, code: int) -> None:
    project.write(".state/scheduler.db", "old")
    command = in_terminal(start, "reset", cwd=project.root, env=clean_environment(STATE_DIRECTORY=""))
    command.wait_for(r"This removes all conversations and orchestrations in \.state \(0\.0 MB\)\.")
    type_in(command, answer)
    assert command.wait(10) == code
    assert "Traceback" not in command.output
    assert (project.root / ".state/scheduler.db").exists() == bool(code)


# The same with the samples, their scheduler and the offline model.


@pytest.fixture
def samples(start: Start, tmp_path: Path) -> Callable[..., Process]:
    """Starts a sample with run.py, with the state of an earlier start in this test."""
    folders = {"STATE_DIRECTORY": str(tmp_path / "state"), "CONTENT_DIRECTORY": str(tmp_path)}
    return lambda *arguments, **settings: start(
        sys.executable, "-m", "runner", *arguments, env=clean_environment(**folders, **settings)
    )


def test_a_draft_waits_for_the_next_run(start: Start, samples: Callable[..., Process], tmp_path: Path) -> None:
    settings = clean_environment(STATE_DIRECTORY=str(tmp_path / "state"), CONTENT_DIRECTORY=str(tmp_path))
    asked = in_terminal(start, "07", "green tea", "--review-timeout", "86400", cwd=ROOT, env=settings)
    instance = asked.wait_for(r"Orchestration: (\w+)")[1]
    asked.wait_for("Draft 1 of 3")
    type_in(asked, "\x03")
    assert asked.wait(20) == 130
    decided = in_terminal(start, "07", "--instance", instance, cwd=ROOT, env=settings)
    decided.wait_for(rf"Draft 1 of 3 \({instance}\)")
    type_in(decided, "yes\n")
    assert decided.wait() == 0
    assert "Approved." in decided.output
    assert (tmp_path / "published" / f"{instance}.md").exists()


def test_a_run_outlives_the_one_that_it_joined_and_its_conversation_continues_in_the_next(
    samples: Callable[..., Process], model: ScriptedModel
) -> None:
    model.held = threading.Event()
    first = samples("01", "--chat", AZURE_OPENAI_ENDPOINT=model.address)
    first.wait_for("Conversation ")
    second = samples("01", "Tell me a joke about a cat.", AZURE_OPENAI_ENDPOINT=model.address)
    eventually(lambda: model.requests, "the question, at either run's worker")
    (address,) = re.findall(r"scheduler (\S+) \(state", first.err[0])
    assert f"scheduler {address} (joined that of another run.py, state in " in second.err[0]
    assert first.popen.stdin
    first.popen.stdin.close()
    assert first.wait() == 0
    eventually(lambda: "this one continues at" in second.errors, "the second run's scheduler")
    model.held.set()
    assert second.wait() == 0, second.errors
    assert re.search(r"^Joker: \S", second.output, re.MULTILINE)

    (key,) = re.findall(r"^Conversation (\w+)", second.output, re.MULTILINE)
    tomorrow = samples("01", "--session", key, "What did I ask first?", AZURE_OPENAI_ENDPOINT=model.address)
    assert tomorrow.wait() == 0
    assert "is not known here" not in tomorrow.errors
    assert re.search(r"^Joker: .*Tell me a joke about a cat\.", tomorrow.output, re.MULTILINE)


# All samples -----------------------------------------------------------------------------------------------------


def test_all_runs_every_sample_and_sums_up(project: Project) -> None:
    project.add_sample("01_first")
    project.add_sample("02_second", client="exit(3)")
    project.add_sample("04_fourth")
    command = project.start("all")  # its standard input stays open, but a client must see the end of its input
    assert command.wait() == 1
    assert re.search(
        r"\n01_first +ok +\d+\.\d s\n02_second +failed, exit code 3 +\d+\.\d s\n04_fourth +ok ", command.output
    )
    assert "dashboard" not in command.errors
    assert project.left_behind() == []


def test_all_ends_at_a_signal(project: Project, tmp_path: Path) -> None:
    project.add_sample("01_first", client=WAITING)
    project.add_sample("02_second")
    command = project.start("all", STATE_DIRECTORY=str(tmp_path / "state"))
    command.wait_for("client waits")
    command.signal(signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM
    assert command.errors.endswith(f"\nInterrupted, stopping.\nAll is kept, in {tmp_path / 'state'}.\n")
    assert "02_second" not in command.errors


# Only the services -----------------------------------------------------------------------------------------------

ANY_PORTS = ["--scheduler-port", "0", "--model-port", "0", "--redis-port", "0", "--dashboard-port", "0"]


def test_up_says_how_to_reach_the_services_and_what_is_kept(project: Project, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "scheduler.db").write_bytes(bytes(1_230_000))
    command = project.start("up", *ANY_PORTS, STATE_DIRECTORY=str(tmp_path / "state"))
    command.wait_for("Ctrl-C stops the services")
    assert re.search(rf"^scheduler +\S+ \(state in {tmp_path}/state, 1\.2 MB\)\n", command.output)
    for name, variable in (
        ("scheduler", "ENDPOINT"),
        ("model", "AZURE_OPENAI_ENDPOINT"),
        ("redis", "REDIS_CONNECTION_STRING"),
    ):
        address = re.search(rf"^{name} +(\S+)", command.output, re.MULTILINE)
        assert address
        assert f"  export {variable}={address[1]}\n" in command.output
        with socket.create_connection(("127.0.0.1", int(address[1].rpartition(":")[2]))):
            pass
    command.signal(signal.SIGINT)
    assert command.wait() == 130
    assert command.errors.endswith(f"\nInterrupted, stopping.\nAll is kept, in {tmp_path / 'state'}.\n")
    assert project.left_behind() == []


def test_up_keeps_nothing_if_told_so_and_needs_no_dashboard(project: Project, tmp_path: Path) -> None:
    project.write("local_services/dashboard/__main__.py", "import sys; sys.exit('no reason')")
    command = project.start("up", *ANY_PORTS, "--memory", STATE_DIRECTORY=str(tmp_path / "state"))
    model = command.wait_for(r"scheduler +\S+ \(state in memory\)\nmodel +http://127\.0\.0\.1:(\d+)")[1]
    ended = "dashboard │ no reason\nThe dashboard has ended (exit code 1).\n"
    eventually(lambda: ended in command.errors, "the news of the dashboard")
    with socket.create_connection(("127.0.0.1", int(model))):
        pass
    command.signal(signal.SIGINT)
    assert command.wait() == 130
    assert "Nothing is kept" in command.errors
    assert not (tmp_path / "state").exists()


def test_up_names_all_busy_ports_and_the_command_that_avoids_them(project: Project, listening: int) -> None:
    busy = str(listening)
    command = project.run("up", *ANY_PORTS[:2], "--model-port", busy, "--redis-port", busy, "--memory", *ANY_PORTS[6:])
    assert command.popen.returncode == 2
    assert command.errors == (
        f"Port {listening}, for the model, is in use.\n"
        f"Port {listening}, for the redis, is in use.\n"
        "Stop what listens there, or choose others: python3 run.py up --memory "
        "--scheduler-port 0 --model-port 0 --redis-port 0 --dashboard-port 0\n"
    )


@pytest.mark.parametrize("arguments", [["--model-port", "65536"], ["--dashboards"]])
def test_up_refuses_wrong_options(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        launcher.up(Supervisor(), arguments)
    assert arguments[0] in capsys.readouterr().err


def test_up_ends_when_a_service_breaks_down(project: Project) -> None:
    breaks_down = SERVICE.format(name="model").replace("stopped.wait()", "import os; listener.accept(); os._exit(5)")
    project.write("local_services/offline_model/__main__.py", breaks_down)
    command = project.start("up", *ANY_PORTS)
    port = int(command.wait_for(r"model +http://127\.0\.0\.1:(\d+)[^$]+Ctrl-C")[1])
    socket.create_connection(("127.0.0.1", port)).close()
    assert command.wait() == 1
    assert "The model has ended (exit code 5).\n" in command.errors
    assert project.left_behind() == []


# Interruptions ---------------------------------------------------------------------------------------------------

NEVER_READY = "import sys, time; print('not yet', file=sys.stderr, flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('Worker ready', flush=True); time.sleep(600)"

STAGES: dict[str, tuple[Callable[[Project], None], str]] = {
    "a service starts": (
        lambda p: p.write("local_services/offline_model/__main__.py", NEVER_READY) and p.add_sample("01_first"),
        "not yet",
    ),
    "the worker starts": (lambda p: p.add_sample("01_first", worker=NEVER_READY), "not yet"),
    "the client runs": (lambda p: p.add_sample("01_first", client=WAITING), "client waits"),
    "a deaf worker stops": (lambda p: p.add_sample("01_first", worker=DEAF), "The worker is finishing its work"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("a service starts", signal.SIGINT),
        ("a service starts", signal.SIGHUP),
        ("the worker starts", signal.SIGTERM),
        ("the worker starts", signal.SIGINT),
        ("the client runs", signal.SIGTERM),
        ("the client runs", signal.SIGHUP),
        ("a deaf worker stops", signal.SIGINT),
    ],
)
def test_a_signal_leaves_nothing_behind(project: Project, listening: int, stage: str, number: signal.Signals) -> None:
    prepare, moment = STAGES[stage]
    prepare(project)
    elsewhere = f"http://127.0.0.1:{listening}" if "deaf" in stage else ""  # its unfinished work may matter
    command = project.start("01", ENDPOINT=elsewhere)
    if command.popen.stdin and elsewhere:
        command.popen.stdin.close()  # the client reads to the end
    eventually(lambda: moment in command.output + command.errors, moment)
    command.signal(number)
    assert command.wait(20) == 128 + number
    assert project.left_behind() == []
    assert "Traceback" not in command.errors
    if elsewhere:
        assert f"\nFound scheduler {elsewhere}\n" in command.errors
        assert command.errors.endswith(f"\nAll is kept by the scheduler at {elsewhere}.\n")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_terminal(project: Project, start: Start, times: int) -> None:
    says_goodbye = (
        "import time\nprint('client waits')\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('come back')"
    )
    project.add_sample("01_first", DEAF if times == 2 else WORKER, says_goodbye)
    command = in_terminal(start, "01", cwd=project.root, env=clean_environment(MARK=project.mark, NO_COLOR=""))
    for moment in ["client waits", "come back"][:times]:
        command.wait_for(moment)
        type_in(command, "\x03")
    assert command.wait(10) == 130
    assert "\x1b[2mworker │ Worker ready\x1b[0m" in command.output
    assert re.search(r"Interrupted, stopping\.[^$]*All is kept", command.output)
    assert "Traceback" not in command.output
    assert project.left_behind() == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_second_signal_hurries_all_that_is_left(project: Project) -> None:
    project.add_sample("01_first", DEAF, DEAF.replace("Worker ready", "client waits"))
    command = project.start("01")
    command.wait_for("client waits")
    command.signal(signal.SIGINT)  # the client gets time for its last message
    eventually(lambda: "Interrupted, stopping." in command.errors, "the first signal")
    command.signal(signal.SIGTERM)  # and now neither the client nor the worker gets time
    assert command.wait(5) == 128 + signal.SIGTERM
    assert project.left_behind() == []


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_a_killed_supervisor_leaves_nothing_behind(project: Project) -> None:
    project.add_sample("01_first", client=WAITING)
    command = project.start("01")
    command.wait_for("client waits")
    command.popen.kill()
    eventually(lambda: project.left_behind() == [], "the end of all processes")


# The installation ------------------------------------------------------------------------------------------------

# Replaces uv: creates the environment, logs its arguments, and does what INSTALLATION says. With "waits" it waits until
# the log has been read and removed.
UV = f"""#!{sys.executable}
import os, pathlib, subprocess, sys, time

if sys.argv[1] == "venv":
    folder = pathlib.Path(sys.argv[-1])
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (next(folder.glob("lib/*/site-packages")) / "pip.py").touch()
with open(os.environ["INSTALLED"], "a") as log:
    print(*(pathlib.Path(part).name for part in sys.argv[1:]), file=log)
if sys.argv[1] == "pip" and os.environ["INSTALLATION"] == "fails":
    sys.exit("no such package")
if sys.argv[1] == "pip" and os.environ["INSTALLATION"] == "waits":
    while os.path.exists(os.environ["INSTALLED"]):
        time.sleep(0.01)
"""
MAKES_VENV = f"venv --seed --python {Path(getattr(sys, '_base_executable', sys.executable)).name} .venv"
INSTALLS = (
    f"pip install --compile-bytecode --python {Path(sys.executable).name} "
    "-c constraints.txt -r requirements.txt --group local"
)


class Installation:
    """run.py in a separate project, with a replacement for uv."""

    def __init__(self, root: Path, start: Start) -> None:
        self.root = root
        self._start = start
        self.log = root / "installed.txt"
        for path, text in {
            "bin/uv": UV,
            "pyproject.toml": "",
            "constraints.txt": "",
            "01_first/requirements.txt": "",
            "runner/__init__.py": "",
            "runner/__main__.py": "import sys; print('started', sys.argv[1:])",
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        (root / "bin/uv").chmod(0o755)
        shutil.copy(ROOT / "run.py", root)

    def start(self, *arguments: str, installation: str = "works") -> Process:
        """Start run.py with the Python of these tests."""
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = clean_environment(PATH=path, INSTALLED=str(self.log), INSTALLATION=installation)
        return self._start(sys.executable, self.root / "run.py", *arguments, cwd=self.root.parent, env=env)

    def run(self, *arguments: str, installation: str = "works") -> Process:
        """Run it to its end."""
        process = self.start(*arguments, installation=installation)
        process.wait()
        return process

    def installed(self) -> list[str]:
        """The installer's commands since the last call."""
        commands = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return commands


@pytest.fixture
def installation(tmp_path: Path, start: Start) -> Installation:
    return Installation(tmp_path / "project", start)


def test_installs_once_and_again_when_something_changed(installation: Installation) -> None:
    first = installation.run("01", "a b")
    assert (first.popen.returncode, first.output) == (0, "started ['01', 'a b']\n")
    assert first.errors.splitlines() == [
        f"Making .venv for Python {sys.version_info[0]}.{sys.version_info[1]} ...",
        "Installing what the samples need, with uv ...",
    ]
    assert installation.installed() == [MAKES_VENV, INSTALLS]
    again = installation.run("01")
    assert (again.popen.returncode, again.errors) == (0, "")
    assert installation.installed() == []
    for file in ("01_first/requirements.txt", "pyproject.toml", "constraints.txt"):
        (installation.root / file).write_text("# changed")
        installation.run("01")
        assert installation.installed() == [INSTALLS]


def test_installs_the_tests_needs_for_the_tests_alone(installation: Installation) -> None:
    installation.run("01")
    installation.installed()
    (installation.root / "pytest.py").write_text("import sys; print('pytest', sys.argv[1:])")
    tests = installation.run("test", "--all", "-k", "some")
    assert tests.output == "pytest ['--all', '-k', 'some']\n"
    assert installation.installed() == [INSTALLS.replace("local", "test")]
    (installation.root / ".venv" / "installed-local").unlink()
    installation.run("01")
    assert installation.installed() == [], "what the tests need includes what the samples need"


@pytest.mark.parametrize("broken", ["bin/python", "pyvenv.cfg"])
def test_a_broken_environment_is_made_again(installation: Installation, broken: str) -> None:
    installation.run("01")
    installation.installed()
    (installation.root / ".venv" / broken).unlink()
    (installation.root / "pyproject.toml").write_text("# changed")
    assert installation.run("01").output == "started ['01']\n"
    assert installation.installed() == [MAKES_VENV, INSTALLS]


def test_a_failed_installation_says_why_and_is_repeated(installation: Installation) -> None:
    failed = installation.run("01", installation="fails")
    assert failed.popen.returncode == 1
    assert "no such package" in failed.errors
    assert "Run the same command to try again" in failed.errors
    assert failed.output == ""
    installation.installed()
    assert installation.run("01").output == "started ['01']\n"
    assert installation.installed() == [INSTALLS]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_installation_is_repeated(installation: Installation, number: int) -> None:
    interrupted = installation.start("01", installation="waits")
    eventually(lambda: installation.log.exists() and INSTALLS in installation.log.read_text(), "the installation")
    interrupted.signal(number)
    assert interrupted.wait() == 130
    assert interrupted.errors.endswith("Interrupted. Run the same command to continue.\n")
    installation.installed()
    assert installation.run("01").output == "started ['01']\n"
    assert installation.installed() == [INSTALLS]


@pytest.mark.skipif(sys.platform != "linux", reason="what a killed process leaves running differs elsewhere")
@pytest.mark.parametrize("killed", [False, True])
def test_only_one_installs_at_a_time(installation: Installation, killed: bool) -> None:
    first = installation.start("01", installation="waits")
    eventually(lambda: installation.log.exists() and INSTALLS in installation.log.read_text(), "the installation")
    second = installation.start("01")
    eventually(lambda: "Another run.py is installing; waiting for it ...\n" in second.errors, "the second to wait")
    if killed:
        first.kill()  # but not its installer
    with (installation.root / "run.py").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert installation.installed() == [MAKES_VENV, INSTALLS]
    assert second.wait() == 0
    assert second.output == "started ['01']\n"
    assert installation.installed() == ([INSTALLS] if killed else [])
    assert killed or first.wait() == 0


def old_pythons() -> list[Path]:
    """Pythons before 3.10 that pyenv has on this machine."""
    if not shutil.which("pyenv"):
        return []
    root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
    versions = [folder for folder in Path(root, "versions").iterdir() if re.match(r"2\.|3\.\d\.", folder.name)]
    return sorted(folder / "bin" / "python" for folder in versions)


@pytest.mark.skipif(not old_pythons(), reason="there is no old Python here")
def test_an_old_python_is_told_so_in_one_line(start: Start) -> None:
    for python in old_pythons():
        command = start(python, ROOT / "run.py", "01")
        assert command.wait() == 1
        assert re.fullmatch(r"These samples need Python 3\.10 or newer; this is Python \d\.\d\.\n", command.errors)


@pytest.mark.long
def test_a_fresh_copy_runs_a_sample(tmp_path: Path, start: Start) -> None:
    # The real installation with pip, from the package index, and the real services. It only needs Python.
    root = tmp_path / "fresh"
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(ROOT, root, ignore=ignored)
    without_uv = [folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "uv").exists()]
    env = clean_environment(PATH=os.pathsep.join(without_uv))
    for errors in (r"Making \.venv [^$]*Installing what", r"\AStarted scheduler"):
        command = start(sys.executable, root / "run.py", "01", cwd=tmp_path, env=env)
        assert command.wait(150) == 0, command.errors
        assert len(re.findall(r"^Joker: \S", command.output, re.MULTILINE)) == 2
        assert re.search(errors, command.errors)
