"""`run.py prove`: it passes as the samples are, and it fails where a promise is broken on purpose."""

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Process, Start, eventually

from runner.prove import __main__ as prove
from runner.prove import cases, driver
from runner.prove.report import COLUMNS

Break = Callable[[str, str, str, str], None]
Cells = dict[str, str]


def without(*, redelivery: bool = False, disk: bool = False) -> tuple[str, str]:
    """A scheduler that does not redeliver the work of a dead worker, or writes nothing to disk."""
    lines = ["import sys", "from local_services.scheduler import __main__, work"]
    if redelivery:
        lines.append("work.Work._offer_again = lambda *_: None")
    if disk:
        lines.append("del sys.argv[-2:]  # --state and its file")
    return "-c", "\n".join([*lines, "__main__.main()"])


@pytest.fixture
def break_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Break:
    """Runs a copy of a sample in which a text of a file is replaced."""

    def break_one(number: str, file: str, text: str, broken: str) -> None:
        (folder,) = ROOT.glob(f"{number}_*")
        copy = shutil.copytree(folder, tmp_path / folder.name)
        code = (copy / file).read_text()
        assert code.count(text) == 1
        (copy / file).write_text(code.replace(text, broken))
        monkeypatch.setattr(cases, "SAMPLES", tmp_path)

    return break_one


@pytest.fixture
def row(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Cells]]:
    """Runs the command for one row; returns the exit code, and the row's cells."""

    def run(*arguments: str) -> tuple[int, Cells]:
        code = prove.main(list(arguments))
        printed = capsys.readouterr().out
        (line,) = re.findall(r"^all .*$", printed, re.MULTILINE)
        return code, dict(zip(COLUMNS, line.split()[-len(COLUMNS) :], strict=True))

    return run


Row = Callable[..., tuple[int, Cells]]


def bad(cells: Cells) -> Cells:
    """The cells that are not as they should be."""
    return {name: cells[name] for name in COLUMNS[1:6] if cells[name] != "0"}


def test_a_kill_and_random_ones_of_a_sample_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    arguments = ["--sample", "04", "--kill", "worker", "--step", "model called second"]
    assert prove.main([*arguments, "--rounds", "1", "--seed", "7", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "--rounds 1 --seed 7" in printed
    assert re.search(r"^04 +worker +2 +0 +0 +0 +0 +0 +[\d.]+ +[\d.]+$", printed, re.MULTILINE)
    (last,) = re.findall(r"^0 of 2 runs lost anything, .* or hung\. After a kill, .*", printed, re.MULTILINE)
    written = json.loads(file.read_text())
    assert last.startswith(written["last_line"])
    assert [run["step"] for run in written["runs"]] == ["model called second", "a random moment"]
    assert (
        written["runs"][1]["moment"]
        == cases.random_cases(cases.all_cases("04", "worker"), 1, prove.random.Random(7))[0].moment
    )


def test_a_scheduler_that_does_not_redeliver(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SCHEDULER_PROGRAM", without(redelivery=True))
    monkeypatch.setattr(driver, "PATIENCE", 4)
    code, cells = row("--sample", "04", "--kill", "worker", "--step", "model called first")
    assert (code, bad(cells)) == (1, {"hung": "1"})


def test_a_scheduler_that_writes_nothing_to_disk(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "SCHEDULER_PROGRAM", without(disk=True))
    code, cells = row("--sample", "04", "--kill", "scheduler", "--step", "model called second")
    assert code == 1
    assert cells["lost"] != "0"


def test_an_activity_that_writes_each_time(row: Row, break_sample: Break) -> None:
    break_sample("06", "activities.py", "if not path.exists():", "path = path.with_name(uuid4().hex)\n    if True:")
    code, cells = row("--sample", "06", "--kill", "worker", "--step", "reply sent")
    assert (code, bad(cells)) == (1, {"doubled": "1"})


def test_an_activity_that_writes_over_what_it_wrote(row: Row, break_sample: Break) -> None:
    break_sample("07", "activities.py", "if not path.exists():", "if True:")
    code, cells = row("--sample", "07", "--kill", "worker", "--step", "published")
    assert (code, bad(cells)) == (1, {"doubled": "1"})


def test_a_tool_that_is_not_durable(row: Row, break_sample: Break) -> None:
    break_sample("03", "tools.py", 'f"{key}.txt"', 'f"{uuid4().hex}.txt"')
    code, cells = row("--sample", "03", "--kill", "worker", "--step", "table reserved")
    assert (code, bad(cells)) == (1, {"doubled": "1"})


def test_a_client_that_prints_twice(row: Row, break_sample: Break) -> None:
    improved = 'print(f"Improved:      {printable(state.get_output())}")'
    break_sample("04", "client.py", improved, f"{improved}\n    {improved}")
    code, cells = row("--sample", "04", "--kill", "client", "--step", "answer stored")
    assert (code, bad(cells)) == (1, {"doubled": "1"})


def test_a_client_that_prints_less(row: Row, break_sample: Break) -> None:
    break_sample("04", "client.py", "{printable(state.get_output())}", "{printable(state.get_output())[:-1]}")
    code, cells = row("--sample", "04", "--kill", "client", "--step", "answer stored")
    assert (code, bad(cells)) == (1, {"wrong text": "1"})


def test_a_result_that_no_agent_gave(row: Row, break_sample: Break) -> None:
    break_sample("04", "orchestration.py", "return improved", "return improved.upper()")
    code, cells = row("--sample", "04", "--kill", "worker", "--step", "model called second")
    assert (code, bad(cells)) == (1, {"wrong text": "1"})


def test_a_step_that_is_asked_for_twice(row: Row, break_sample: Break) -> None:
    again = "draft = yield from ask(context, writer, 'Write a concise inspirational sentence about learning.')"
    break_sample("04", "orchestration.py", "    # In the same session", f"    {again}\n    # In the same session")
    code, cells = row("--sample", "04", "--kill", "worker", "--step", "model called second")
    assert code == 1
    assert cells["paid again"] != "0"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches a process group there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything(start: Start, number: int) -> None:
    command: Process = start(sys.executable, "-m", "runner.prove", "--sample", "03")
    own = psutil.Process(command.popen.pid)
    eventually(lambda: len(own.children(recursive=True)) > 6, "runs are under way")
    started = own.children(recursive=True)
    command.signal(number)
    assert command.wait() == 130
    assert "Interrupted." in command.output
    _, alive = psutil.wait_procs(started, 10)
    assert not alive


def test_against_another_scheduler(row: Row, scheduler: str, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used as it is, in one task hub, and not killed."""
    monkeypatch.setenv("TASKHUB", hub)
    monkeypatch.setattr(driver, "SCHEDULER_PROGRAM", ("-c", "raise SystemExit"))
    code, cells = row("--against", scheduler, "--sample", "07", "--kill", "worker", "--step", "published")
    assert (code, cells["runs"], bad(cells)) == (0, "1", {})
    assert prove.main(["--against", scheduler, "--kill", "scheduler"]) == 2


def test_what_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert prove.main(["--sample", "99"]) == 2
    assert "no such run" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(900)
def test_everything_that_is_killed(start: Start) -> None:
    command = start(sys.executable, "-m", "runner.prove", "--rounds", "1")
    assert command.wait(900) == 0, command.output
