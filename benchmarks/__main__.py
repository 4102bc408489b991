"""`python3 run.py bench`: measures what durability costs on this machine; prints a table, writes JSON and a chart."""

import argparse
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.report import Row, as_json, draw, machine, row, tables
from benchmarks.services import STOP_SECONDS, Failed, Process, Stack
from runner.addresses import ROOT

LATEST = ROOT / "benchmarks" / "results" / "latest.json"
SCENARIO_SECONDS = 240.0


@dataclass(frozen=True)
class Scenario:
    """One measure of measures.py, and how often it runs.

    Attributes:
        sample: the number of the sample.
        models: for each delay of the model, in milliseconds: the options of the measure.
        quick: the same for `--quick`.
        alone: it starts its processes itself, and receives the sample's folder.
    """

    measure: str
    sample: str
    models: dict[int, dict[str, Any]]
    quick: dict[int, dict[str, Any]]
    alone: bool = False


SCENARIOS = [
    Scenario("start", "01", {0: {"runs": 3}}, {0: {"runs": 1}}, alone=True),
    Scenario("memory", "01", {0: {"count": 500}}, {}, alone=True),
    Scenario("turn", "01", {0: {"runs": 100}, 500: {"runs": 3}}, {0: {"runs": 20}}),
    Scenario(
        "growth", "01", {0: {"turns": [1, 50, 100, 200, 400], "seconds": 45}}, {0: {"turns": [1, 20], "seconds": 10}}
    ),
    Scenario(
        "conversations",
        "01",
        {delay: {"levels": [1, 10, 100, 400], "seconds": 2} for delay in (0, 500)},
        {},
    ),
    Scenario("stream", "03", {0: {"runs": 50}, 500: {"runs": 3}}, {0: {"runs": 10}}),
    Scenario("chain", "04", {0: {"runs": 100}, 500: {"runs": 3}}, {0: {"runs": 20}}),
    Scenario("chains", "04", {50: {"count": 200, "rounds": 3}}, {50: {"count": 50, "rounds": 1}}),
    Scenario("recovery", "04", {2000: {"rounds": 3}}, {2000: {"rounds": 1}}, alone=True),
    Scenario("two", "05", {0: {"runs": 100}, 500: {"runs": 3}}, {}),
    Scenario("decision", "07", {0: {"waiting": 30}, 500: {"waiting": 30}}, {0: {"waiting": 30}}),
]


@dataclass
class Bench:
    """Runs scenarios one after the other. A sample's workers are kept until another sample's scenario."""

    stack: Stack
    quick: bool
    rows: list[Row] = field(default_factory=list)
    _workers: dict[tuple[Path, int], tuple[Process, dict[str, str]]] = field(default_factory=dict)

    def run(self, scenario: Scenario) -> None:
        """Measure. Raises Failed."""
        (sample,) = ROOT.glob(f"{scenario.sample}_*")
        for delay, options in (scenario.quick if self.quick else scenario.models).items():
            label = None if scenario.alone else delay
            began = time.perf_counter()
            tell(f"{scenario.measure}{'' if label is None else f', model of {label} ms'} ... ", end="")
            if scenario.alone:
                self.stop_workers()
                found = self.measure(scenario.measure, sample, dict(os.environ), options | {"sample": str(sample)})
            else:
                worker, env = self.worker(sample, delay)
                services = {"scheduler": self.stack.service("scheduler"), "model": self.stack.model(delay / 1000)}
                pids = {name: process.popen.pid for name, process in {"worker": worker, **services}.items()}
                found = self.measure(scenario.measure, sample, env, options | {"pids": pids})
            self.rows += [row(scenario.measure, label, one) for one in found]
            tell(f"{time.perf_counter() - began:.0f} s")

    def worker(self, sample: Path, delay: int) -> tuple[Process, dict[str, str]]:
        """A worker of the sample with a model of this delay, in milliseconds; and its environment."""
        if any(folder != sample for folder, _ in self._workers):
            self.stop_workers()
        if (sample, delay) not in self._workers:
            env = self.stack.settings(sample, self.stack.model(delay / 1000).address)
            self._workers[sample, delay] = self.stack.worker(sample, env), env
        return self._workers[sample, delay]

    def stop_workers(self) -> None:
        """End the workers of earlier scenarios."""
        for worker, _ in self._workers.values():
            self.stack.stop(worker.popen)
        self._workers.clear()

    def measure(self, name: str, sample: Path, env: dict[str, str], options: dict[str, Any]) -> list[dict[str, Any]]:
        """Run a measure in a new process. Raises Failed."""
        command = [sys.executable, "-m", "benchmarks.measures", name, json.dumps(options)]
        process = self.stack.popen(command, ROOT, env | {"PYTHONPATH": str(sample)}, subprocess.PIPE)
        try:
            output, errors = process.communicate(timeout=SCENARIO_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failed(f"It did not finish within {SCENARIO_SECONDS:g} s.") from None
        finally:
            self.stack.stop(process, patience=4 * STOP_SECONDS)  # it may have to end its processes too
        if process.returncode:
            raise Failed(errors.strip() or f"It ended with exit code {process.returncode}.")
        return json.loads(output)


def main() -> int:
    """Measure and report; returns the exit code: 1 if a scenario failed."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="replace")  # a console that cannot show '≤' shows '?'
    arguments = parse_arguments()
    began = time.perf_counter()
    failed = []
    with Stack() as stack:
        bench = Bench(stack, arguments.quick)
        for scenario in SCENARIOS:
            if scenario.measure in (arguments.only or [scenario.measure]):
                try:
                    bench.run(scenario)
                except Failed as problem:
                    failed.append(scenario.measure)
                    tell(f"failed\n{problem}")
    seconds = time.perf_counter() - began

    about = machine()
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}, Python {about['python']}\n")
    print(tables(bench.rows, arguments.markdown), flush=True)
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "quick": arguments.quick,
        "machine": about,
        "failed": failed,
        "results": [as_json(one) for one in bench.rows],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    chart = arguments.output.with_suffix(".svg")
    draw(bench.rows, chart)
    tell(f"\n{seconds:.0f} s. Written: {arguments.output}, and {chart.name} next to it.")
    if failed:
        tell(f"Failed: {', '.join(failed)}")
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    """The command line; ends the process with code 2 if it is not valid."""
    parser = argparse.ArgumentParser(prog="run.py bench", description=__doc__)
    names = [scenario.measure for scenario in SCENARIOS]
    parser.add_argument("--quick", action="store_true", help="fewer runs and smaller loads: less than a minute")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--output", type=Path, default=LATEST, metavar="FILE.json", help="the chart goes next to it")
    arguments = parser.parse_args()
    if arguments.output.suffix != ".json":
        parser.error(f"--output takes a file name that ends in .json, not {arguments.output}")
    arguments.output = Path(os.environ.get("RUN_FROM", "."), arguments.output)
    return arguments


def tell(text: str, end: str = "\n") -> None:
    """Print progress, on stderr."""
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        tell("\nInterrupted. All processes have ended.")
        sys.exit(130)
