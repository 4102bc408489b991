"""One run: real processes; one of them is killed at a step, and its successor started."""

import json
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from local_services.redis_server import redis_program
from runner.addresses import OFFLINE_MODEL, ROOT
from runner.prove.cases import (
    CLIENT,
    EMAILS,
    FROZEN_SCHEDULER,
    FROZEN_WORKER,
    MODEL,
    REDIS,
    SCHEDULER,
    SILENT_WORKER,
    WORKER,
    Case,
)
from runner.prove.checks import Before, Outcome, judge
from runner.prove.processes import PATIENCE, Process, clean_environment, eventually, free_port
from runner.prove.stops import GO, STOPPED
from runner.prove.stored import Journal, Scheduler, Stored, effects_in
from runner.prove.wire import Wire

SCHEDULER_PROGRAM = ("-m", "local_services.scheduler")
SUCCESSOR = {FROZEN_WORKER: WORKER, SILENT_WORKER: WORKER, FROZEN_SCHEDULER: CLIENT}
GIVES_UP = ("--timeout", "4")  # the client of a frozen scheduler
GIVES_UP_SECONDS = 10.0  # and two for its last call, and four for a busy machine
WAITS = r"Requesting human feedback on draft (\d+)"


@dataclass(frozen=True)
class Services:
    """What runs share: a folder for theirs, a scheduler, and its task hub if there is only one."""

    folder: str
    scheduler: str
    hub: str = ""


class Run:
    """The processes of a run, and what it leaves. Leaving the `with` ends them."""

    def __init__(self, case: Case, services: Services) -> None:
        self.case, self.sample, self.step = case, case.sample, case.step
        self.folder = Path(tempfile.mkdtemp(dir=services.folder))
        self.effects = self.folder / "effects"
        self.id = ""
        self._processes: dict[str, Process] = {}
        self._all: list[Process] = []
        self._ports = {name: free_port() for name in (SCHEDULER, MODEL, REDIS)}
        self._decided = {0}  # drafts
        self._call = ""  # of a tool, that waits for approval
        hub = services.hub or f"prove-{uuid.uuid4().hex[:8]}"
        address = f"http://127.0.0.1:{self._ports[SCHEDULER]}" if self._has_scheduler else services.scheduler
        self.scheduler = Scheduler(address, hub)
        self.wire = Wire(address) if case.victim == SILENT_WORKER else None
        self._settings = {
            "ENDPOINT": address,
            "TASKHUB": hub,
            "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{self._ports[MODEL]}",
            **OFFLINE_MODEL,
            "REDIS_CONNECTION_STRING": f"redis://127.0.0.1:{self._ports[REDIS]}",
            "EMAIL_DIRECTORY": str(self.effects),
            "CONTENT_DIRECTORY": str(self.effects),
            "RESERVATIONS_DIRECTORY": str(self.effects),
            "PROVE_FOLDER": str(self.folder),
            "PROVE_STOP": self.step.stop,
        }
        for name, text in EMAILS.items():
            (self.folder / f"{name}.eml").write_text(text.format(id=self.folder.name))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._all):
            process.kill()
        if self.wire:
            self.wire.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _has_scheduler(self) -> bool:
        return self.case.victim in (SCHEDULER, FROZEN_SCHEDULER)

    # Processes -----------------------------------------------------------------------------------------------------

    def start(self, name: str, *arguments: str, successor: bool = False) -> Process:
        """Start a process and wait until it is ready. A successor is started as a user starts it."""
        command, folder, ready = self._program(name, arguments, successor)
        changed = {"ENDPOINT": self.wire.address} if self.wire and name == WORKER and not successor else {}
        path = {"PYTHONPATH": str(ROOT)} if name == WORKER and "stopping" in str(command[0]) else {}
        env = clean_environment(**{**self._settings, **changed, **path})
        python = [] if name == REDIS and redis_program() else [sys.executable]
        fresh = successor and name != MODEL  # which is not a program of a sample
        process = Process(*python, *command, cwd=folder, env=env, fresh=fresh)
        self._processes[name] = process
        self._all.append(process)
        if ready:
            process.wait_for(ready)
        return process

    def _program(self, name: str, arguments: tuple[str, ...], successor: bool) -> tuple[list[Any], Path, str]:
        port = str(self._ports.get(name))
        if name == SCHEDULER:
            state = str(self.folder / "state.db")
            return [*SCHEDULER_PROGRAM, "--port", port, "--state", state], ROOT, "scheduler ready"
        if name == MODEL:
            forgetful = ["forgetful"] if self.step.retry else []
            return ["-m", "runner.prove.model", port, *forgetful], ROOT, "model ready"
        if name == REDIS and (program := redis_program()):
            return [program, "--bind", "127.0.0.1", "--port", port, "--save", ""], ROOT, "Ready to accept connections"
        if name == REDIS:
            return ["-m", "local_services.redis_server", "--port", port], ROOT, "redis ready"
        if name == CLIENT:
            given = [argument.format(id=self.id, folder=self.folder) for argument in arguments]
            return ["client.py", *given], self.sample.folder, ""
        stops = self.step.stop.startswith(("before", "after")) and not successor
        program = str(ROOT / "runner/prove/stopping_worker.py") if stops else "worker.py"
        return [program], self.sample.folder, "Worker ready"

    # What it has left ----------------------------------------------------------------------------------------------

    def stored(self) -> Stored:
        """What the scheduler has of it."""
        agents = {agent for agent, _ in self.sample.questions}
        return self.scheduler.conversations(agents, self.id) if agents else self.scheduler.orchestration(self.id)

    def journal(self) -> Journal:
        """What its model was asked."""
        return Journal(self.folder)

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """Wait for a condition; meanwhile a person decides on drafts, or on the call of a tool."""

        def look() -> Any:
            found = condition()
            if not found and self.sample.before and not self.step.late and self.id:
                self._decide()
            return found

        return eventually(look, what, patience)

    def _decide(self) -> None:
        if (draft := self._draft()) not in self._decided:
            self._decided.add(draft)
            if self._call:
                self.scheduler.approve(self._call)
            else:
                self.scheduler.decide(self.id, draft)
        time.sleep(0.03)

    def _draft(self) -> int:
        """The number of the draft that waits for a decision; 0 if none does."""
        if self.sample.questions:
            waits = re.search(r"A call waits for approval: .* approve (\S+)\]", self._processes[CLIENT].output)
            self._call = waits[1] if waits else self._call
            return int(bool(self._call))
        waits = re.match(WAITS, self.stored().said)
        return int(waits[1]) if waits else 0

    # The run -------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Run it, and judge it."""
        outcome = Outcome(self.case)
        try:
            self._begin()
            self._reach()
            before = Before(self.stored() if self.id else Stored(), self.journal(), effects_in(self.effects))
            client = self._kill_and_go_on(before, outcome)
            self._processes[WORKER].kill()
            if client:
                judge(self, before, client, outcome)
        except Exception as problem:  # it did not come to its end
            outcome.add("hung", f"{type(problem).__name__}: {problem}\n{self._said()}")
        return outcome

    def _begin(self) -> None:
        """Start everything."""
        if self._has_scheduler:
            self.start(SCHEDULER)
        if self.sample.number == "03":
            self.start(REDIS)
        self.start(MODEL)
        worker = self.start(WORKER)
        if not self.step.begun:
            worker.freeze()
        if self.sample.before:
            first = self.start(CLIENT, *self.sample.before)
            first.wait()
            self.id = first.wait_for(r"\A(?:Conversation )?(\S+)\n")[1]
        gives_up = GIVES_UP if self.case.victim == FROZEN_SCHEDULER else ()
        client = self.start(CLIENT, *self.sample.ask, *gives_up)
        if not self.case.moment:
            self.id = client.wait_for(r"(?:Conversation|Orchestration:) +(\S+)\n")[1]

    def _reach(self) -> None:
        """Wait until it is at the step."""
        step, agents = self.step, {agent for agent, _ in self.sample.questions}
        if self.case.moment:
            time.sleep(self.case.moment)
            if found := re.search(r"(?:Conversation|Orchestration:) +(\S+)\n", self._processes[CLIENT].output):
                self.id = found[1]
        elif not step.begun and agents:
            self.until(lambda: self.scheduler.has_question(agents, self.id), "the question is stored")
        elif step.draft:
            self.until(lambda: self._draft() == step.draft, "a draft waits")
        elif step.retry:
            self.until(lambda: "Attempt 2 at" in self.stored().said, "a retry waits for its time")
        elif step.stop:
            self.until((self.folder / STOPPED).exists, step.name)
        if step.unseen:
            self._processes[CLIENT].freeze()
            (self.folder / GO).touch()
        if step.answers:
            self.until(self._has_answers, step.name)

    def _has_answers(self) -> bool:
        stored = self.stored()
        ended = not self.step.unseen or not stored.status or stored.status == "COMPLETED"
        return ended and len(stored.texts) >= self.step.answers

    def _kill_and_go_on(self, before: Before, outcome: Outcome) -> Process | None:
        """Kill, start the successor, wait for the end; returns the client that has the result."""
        victim, client, worker = self.case.victim, self._processes[CLIENT], self._processes[WORKER]
        if victim == FROZEN_SCHEDULER:
            self._freeze_scheduler(client, outcome)
        elif victim == FROZEN_WORKER:
            worker.freeze()
        elif self.wire:
            self.wire.silence()
        else:
            self._processes[victim].kill()
        (self.folder / GO).touch()
        if self.step.late:
            self._let_the_time_run_out(before.stored)
        began = time.monotonic()
        if not self.step.begun and victim != WORKER:
            worker.wake()
        if self.step.unseen and victim != CLIENT:
            client.wake()
        successor = SUCCESSOR.get(victim, victim)
        if successor == CLIENT and not self.id:
            return None  # it was killed before it had asked anything
        started = self.start(successor, *(self.sample.again if successor == CLIENT else ()), successor=True)
        last = started if successor == CLIENT else client
        self.until(lambda: last.popen.poll() is not None, "the client has its result", 2 * PATIENCE)
        outcome.seconds = time.monotonic() - began
        if last.wait() == 1 and victim == MODEL and self.sample.questions and "The model failed" in last.errors:
            # It was away for too long. A direct question then fails with the reason, and a person asks again.
            outcome.told = True
            last = self.start(CLIENT, *self.sample.ask_again, successor=True)
            self.until(lambda: last.popen.poll() is not None, "the client has its result")
        if victim == FROZEN_WORKER:  # it wakes up, and sends a result that nobody waits for any more
            worker.wake()
        return last

    def _freeze_scheduler(self, client: Process, outcome: Outcome) -> None:
        """Freeze it until the client has given up, which it must do in its time."""
        scheduler = self._processes[SCHEDULER]
        scheduler.freeze()
        try:
            client.wait(GIVES_UP_SECONDS)
        finally:
            scheduler.wake()

    def _let_the_time_run_out(self, stored: Stored) -> None:
        """Wait until the time for a decision is over, by the custom status."""
        deadline = datetime.fromisoformat(json.loads(stored.said.partition("\n")[2])["deadline"].replace("Z", "+00:00"))
        time.sleep(max(0.0, (deadline - datetime.now(timezone.utc)).total_seconds()))

    def _said(self) -> str:
        """The last lines that its processes have printed."""
        tails = (f"{process.popen.args[1:3]}: {(process.output + process.errors)[-600:]}" for process in self._all)
        return "\n".join(tails)
