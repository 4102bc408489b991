"""Kills each process of each sample at each step with `kill -9`, starts a successor, and checks what is left.

Exit code 1 if anything is lost, done twice, paid for again or wrong, or hangs. The processes start quickly, since their
libraries are loaded already; a successor starts as a user starts it, and the seconds in the table begin there.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from runner.prove import driver
from runner.prove.cases import QUIET, VICTIMS, Case, all_cases, random_cases, without_scheduler
from runner.prove.checks import Outcome
from runner.prove.driver import Run, Services
from runner.prove.processes import Process, fork_server
from runner.prove.report import Table, as_json, last_line
from runner.state import users_folder

LANES, WAITING = 2, 4  # runs in parallel; and of those in which a process is silent, which mostly wait


def main(given: list[str]) -> int:
    """Run what the command line says; returns the exit code."""
    arguments = parse_arguments(given)
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)  # noqa: S311
    chosen = all_cases(arguments.sample, arguments.kill, arguments.step)
    if arguments.against:
        chosen = without_scheduler(chosen)
    chosen += random_cases(chosen, arguments.rounds, random.Random(seed))  # noqa: S311
    if not chosen:
        print("There is no such run: see --help.", file=sys.stderr)
        return 2
    if arguments.rounds:
        print(f"The random moments are those of --rounds {arguments.rounds} --seed {seed}.")
    table, began = Table(chosen), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        pools = ThreadPoolExecutor(WAITING), ThreadPoolExecutor(1 if arguments.against else LANES)
        try:
            shared, scheduler = services(folder, arguments.against)
            for outcome in outcomes_of(chosen, shared, *pools):
                table.add(outcome)
        except KeyboardInterrupt:
            Process.kill_all()
            shutil.rmtree(folder, ignore_errors=True)
            print(f"\nInterrupted. Until then: {last_line(table.outcomes)}" if table.outcomes else "\nInterrupted.")
            sys.stdout.flush()
            os._exit(130)  # the threads still wait for the killed processes
        if scheduler:
            scheduler.kill()
    table.end()
    print(f"({len(chosen)} runs in {time.monotonic() - began:.0f} s)")
    if arguments.json:
        about = {"against": arguments.against or "the local scheduler", "seed": seed}
        Path(users_folder(), arguments.json).write_text(json.dumps(as_json(table.outcomes, **about), indent=1))
    return int(any(outcome.problems for outcome in table.outcomes))


def services(folder: str, against: str) -> tuple[Services, Process | None]:
    """What all runs share: the scheduler that the command line names, or else one that is started."""
    fork_server()
    if against:
        return Services(folder, against, os.environ.get("TASKHUB") or "default"), None
    command = [sys.executable, *driver.SCHEDULER_PROGRAM, "--port", "0", "--state", str(Path(folder, "state.db"))]
    scheduler = Process(*command)
    return Services(folder, scheduler.wait_for(r"scheduler ready: (\S+)")[1]), scheduler


def outcomes_of(
    chosen: list[Case], shared: Services, waiting: ThreadPoolExecutor, working: ThreadPoolExecutor
) -> Iterator[Outcome]:
    """Run the cases. `waiting` is for those in which a process is silent."""

    def run(case: Case) -> Outcome:
        with Run(case, shared) as one:
            return one.run()

    futures = [(waiting if case.victim in QUIET else working).submit(run, case) for case in chosen]
    for future in as_completed(futures):
        yield future.result()


def parse_arguments(given: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py prove", description=__doc__)
    parser.add_argument("--sample", default="", metavar="NUMBER", help="only this one, such as 04")
    parser.add_argument("--kill", default="", choices=VICTIMS, help="only this process")
    parser.add_argument("--step", default="", metavar="NAME", help="only at this step, such as 'answer stored'")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="N more kills of each, at random moments")
    parser.add_argument("--seed", type=int, metavar="N", help="repeats the random moments of an earlier run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all runs to this file")
    parser.add_argument(
        "--against",
        default="",
        metavar="ENDPOINT",
        help="use this scheduler (a DTS emulator or Azure), in the task hub TASKHUB; then it is not killed",
    )
    return parser.parse_args(given)


if __name__ == "__main__":
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(getattr(signal, name), signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
