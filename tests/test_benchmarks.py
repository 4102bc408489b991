"""The benchmark: what it measures, what it writes, and how it ends."""

import json
import re
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from conftest import ROOT, Process, Start, clean_environment, eventually
from test_run import Installation

from benchmarks.report import Row, row, tables

MEASURED = ("turn", "stream", "chains", "recovery", "decision")
PATIENCE = 280


def bench(start: Start, *arguments: str | Path, root: Path = ROOT, **environment: str) -> Process:
    """Start `python -m benchmarks`, like run.py after the installation."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return start(*command, cwd=root, env=clean_environment(**environment))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Path]]:
    """A small finished benchmark, and the file that it has written."""
    file = tmp_path_factory.mktemp("bench") / "results" / "small.json"
    processes: list[Process] = []

    def start(*command: Any, **options: Any) -> Process:
        processes.append(Process(*command, **options))
        return processes[-1]

    process = bench(
        start, "--quick", "--output", "results/small.json", "--only", *MEASURED, RUN_FROM=f"{file.parents[1]}"
    )
    process.wait(PATIENCE)
    yield process, file
    process.stop()


@pytest.fixture
def results(measured: tuple[Process, Path]) -> dict[tuple[str, int | None], dict[str, Any]]:
    """Its results, by measure and the model's delay."""
    report = json.loads(measured[1].read_text(encoding="utf-8"))
    return {(one["measure"], one["model_ms"]): one for one in report["results"]}


Results = dict[tuple[str, int | None], dict[str, Any]]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_measures_and_reports(measured: tuple[Process, Path]) -> None:
    process, file = measured
    assert process.popen.returncode == 0, process.errors
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["quick"] is True
    assert report["failed"] == []
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", report["date"])
    assert report["machine"]["cores"] > 0
    assert set(report["machine"]) == {"processor", "cores", "memory_gb", "system", "python", "packages"}
    assert report["machine"]["packages"]["openai"]
    assert [name for name in MEASURED if f"{name}" in process.errors] == list(MEASURED)  # it prints its progress
    for one in report["results"]:
        assert one["runs"] > 0
        assert one["median"] >= 0
        assert one["p95"] is None or one["p95"] >= one["median"]
        assert one["measure"] in process.output


@pytest.mark.long
def test_each_result_stands_beside_the_direct_calls(results: Results) -> None:
    turn = results["one turn (01)", 0]
    assert (turn["runs"], turn["unit"]) == (20, "ms")
    assert 0 < turn["direct"]["median"] < turn["median"]
    assert turn["added"] == pytest.approx(turn["median"] - turn["direct"]["median"])
    assert turn["ratio"] == pytest.approx(turn["median"] / turn["direct"]["median"])
    slow = results["50 chains of two at once (04)", 50]
    assert slow["median"] > slow["direct"]["median"] >= 0.1  # both waited for the same model
    first, last = results["first token (03)", 0], results["last token (03)", 0]
    assert 0 < first["median"] <= last["median"]
    assert 0 < first["direct"]["median"] <= last["direct"]["median"]
    assert results["decision to completion (07)", 0]["runs"] == 30
    assert results["decision to completion (07)", 0]["direct"] is None


@pytest.mark.long
def test_a_load_is_given_with_the_processors_time_of_each_process(results: Results) -> None:
    chains = results["50 chains of two at once (04)", 50]
    assert chains["unit"] == "s"
    assert chains["direct"]["median"] > 0.1  # two calls of 50 ms
    assert set(chains["cpu_ms_a_turn"]) == {"worker", "scheduler", "model", "client"}
    assert chains["cpu_ms_a_turn"]["worker"] > 0


@pytest.mark.long
def test_a_killed_workers_successor_finishes_with_three_calls(results: Results) -> None:
    assert results["worker killed: calls of the model", None]["median"] == 3
    assert results["worker killed: its successor's start to the result", None]["median"] > 2  # the whole second call


@pytest.mark.long
def test_the_chart_is_whole_and_asks_for_nothing_elsewhere(measured: tuple[Process, Path]) -> None:
    chart = ElementTree.parse(measured[1].with_suffix(".svg"))  # noqa: S314 - it was made here
    texts = {text for element in chart.iter() if (text := (element.text or "").strip())}
    assert {"one turn (01)", "first token (03)", "direct calls", "durable"} <= texts
    names = {name for element in chart.iter() for name in (element.tag, *element.attrib)}
    assert not [name for name in names if name.endswith(("href", "src"))]


def test_the_tables_can_be_had_as_markdown() -> None:
    found = {"measure": "one turn (01)", "unit": "ms", "values": [10.0, 12.0, 14.0], "direct": [4.0]}
    rows: list[Row] = [row("turn", 0, found), row("load", 500, found | {"cpu_ms_a_turn": {"worker": 1.5}})]
    table, cpu = tables(rows, markdown=True).split("\n\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert {len(line) for line in lines} == {10}
    assert all(set(cell) <= {"-", ":"} for cell in lines[1])
    assert lines[2] == ["one turn (01)", "0 ms", "ms", "12.0", "13.8", "3", "4.00", "–", "8.00", "3.0 ×"]
    assert cpu.splitlines()[2].split() == ["|", "one", "turn", "(01)", "|", "500", "ms", "|", "1.50", "|"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "nothing"], "invalid choice: 'nothing'"),
        (["--output", "chart.svg"], "ends in .json"),
        (["fast"], "unrecognized arguments: fast"),
    ],
)
def test_refuses_what_it_does_not_know(start: Start, arguments: list[str], says: str) -> None:
    refused = bench(start, *arguments)
    assert refused.wait() == 2
    assert says in refused.errors
    assert refused.output == ""


def test_a_scenario_that_fails_is_named_and_the_others_go_on(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    for folder in ("benchmarks", "local_services", "runner"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for number, worker in ("01", "raise SystemExit('no such agent')"), ("07", "raise SystemExit('no such review')"):
        (root / f"{number}_sample").mkdir()
        (root / f"{number}_sample" / "worker.py").write_text(worker)
    process = bench(start, "--quick", "--only", "turn", "decision", root=root)
    assert process.wait() == 1
    assert "no such agent" in process.errors
    assert "no such review" in process.errors
    assert "Failed: turn, decision" in process.errors
    assert "Traceback" not in process.errors
    assert json.loads((root / "benchmarks/results/latest.json").read_text())["failed"] == ["turn", "decision"]


def test_ctrl_c_ends_all_that_it_has_started(start: Start, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    process = bench(start, "--only", "turn", "--output", tmp_path / "none.json", MARK=mark)

    def marked() -> list[str]:
        return [
            " ".join(one.info["cmdline"] or [])
            for one in psutil.process_iter(["environ", "cmdline"])
            if (one.info["environ"] or {}).get("MARK") == mark
        ]

    for part in ("benchmarks.measures", "local_services.scheduler", "local_services.offline_model", "worker.py"):
        eventually(lambda part=part: any(part in command for command in marked()), part, 60)
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert "Traceback" not in process.errors
    assert "Interrupted" in process.errors
    assert marked() == []
    assert not (tmp_path / "none.json").exists()


def test_run_py_installs_for_it_and_passes_its_arguments_on(tmp_path: Path, start: Start) -> None:
    installation = Installation(tmp_path / "project", start)
    (installation.root / "benchmarks.py").write_text("import os, sys; print(sys.argv[1:], os.environ['RUN_FROM'])")
    process = installation.run("bench", "--quick")
    assert process.output == f"['--quick'] {tmp_path}\n"
    assert [command.split()[-1] for command in installation.installed()[-2:]] == ["local", "bench"]
