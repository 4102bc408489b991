"""The scheduler is killed at random moments while a sample runs: nothing is lost, and nothing happens twice.

Scheduler, worker and client are real processes. A run with kills must have the same results as one without: the same
output of the client, the same conversations and orchestrations in the scheduler, the same files.

KILLS=100 makes 100 runs or a few more, the same number for each sample. To see a line for each:

    KILLS=100 python -m pytest tests/test_scheduler_kills.py -n 0 -s

KILLS_SEED repeats the choices of an earlier run. The moments are seconds of a real clock, so a kill may hit something
else.
"""

import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import pytest
from conftest import Process, Sample, Start, eventually
from durabletask.client import EntityQuery, OrchestrationStatus
from durabletask.history import TaskCompletedEvent
from orchestrations import complaints, scheduler_client
from raw_scheduler import RawScheduler
from scripted_model import ScriptedModel
from task_hub import call_activity, finish
from test_03_streaming import RedisServer, shown
from test_outage import StoredScheduler, lines_about_the_scheduler

from local_services.redis_server import redis_program


@dataclass(frozen=True)
class Case:
    """A sample, and the result of one run of its client without arguments."""

    number: str
    turns: dict[str, list[int]]  # by agent: the length of each of its conversations
    files: tuple[str, ...] = ()


CASES = [
    Case("01", {"joker": [2]}),
    Case("02", {"chemistagent": [2], "physicistagent": [2], "routeragent": [5]}),
    Case("03", {"travelplanner": [1]}),
    Case("04", {"writeragent": [2]}),
    Case("05", {"chemistagent": [1], "physicistagent": [1]}),
    Case("06", {"emailassistantagent": [1], "spamdetectionagent": [1, 1]}, ("outbox/ID.eml", "spam/ID.eml")),
    Case("07", {"contentwriteragent": [1, 1]}, ("published/ID.md",)),
]
RUNS = math.ceil(int(os.environ.get("KILLS") or 1) / len(CASES))  # of each sample
MODEL_SECONDS = 0.1
WRITE_SECONDS = 0.15  # the longest wait for the next write: longer than the model takes

# client.py, after it has connected to the scheduler: before that, it does not wait for one.
CLIENT = """
import client
from hosting.program import run
from hosting.scheduler import scheduler_client
scheduler_client().close()
input("Ready\\n")
run(client.main)
"""

# What differs from run to run, and what to compare instead.
VARYING = [
    (r"\b(report|prize)-[0-9a-f]{6}\b|\b[0-9a-f]{32}\b", "ID"),
    (r"(\d{4}-\d\d-\d\d|\w{3}, \d+ \w{3} \d{4}) \d\d:\d\d:\d\d|\([\d:]+ left\)", "TIME"),
]

# Events with the same number in every run's history. (The numbers of turns and of unneeded notices differ.)
COUNTED = ["EntityOperationCalledEvent", "EntityOperationCompletedEvent", "EventRaisedEvent", "TaskScheduledEvent"]


@dataclass(frozen=True)
class Left:
    """The result of a run, without what differs from run to run."""

    output: str
    conversations: list[tuple[str, list[str]]]
    orchestrations: list[dict[str, int]]
    files: dict[str, str]


@dataclass(frozen=True)
class Run:
    """How long a run took, how often it called the model, how many kills came before the client's end."""

    seconds: float
    requests: int
    kills: int
    left: Left


@dataclass(frozen=True)
class Kill:
    """All in seconds."""

    after: float  # since the run began, or since the scheduler was ready again
    away: float  # until it is started again
    starting: float  # until it is killed again while it starts; 0: it is not
    at_write: bool  # it is killed when it writes something: then the caller probably has no answer yet

    @property
    def count(self) -> int:
        return 2 if self.starting else 1

    def __str__(self) -> str:
        again = f" again {self.starting:.2f}" if self.starting else ""
        return f"{self.after:.2f}{' at a write' if self.at_write else ''} away {self.away:.2f}{again}"


def plan(choices: random.Random, usual: float) -> list[Kill]:
    """One to three kills in a run that usually takes this long."""
    moments = sorted(choices.uniform(0, 1.1 * usual) for _ in range(choices.randint(1, 3)))
    return [
        Kill(
            after=moment - before,
            away=choices.choice([0.0, 0.0, 0.0, choices.uniform(0, 2)]),
            starting=choices.choice([0.0, 0.0, 0.0, choices.uniform(0, 0.3)]),
            at_write=choices.random() < 0.5,
        )
        for before, moment in zip([0.0, *moments], moments, strict=False)
    ]


class KilledScheduler(StoredScheduler):
    """Keeps all its processes, to check what they have printed."""

    def __init__(self, start: Start, file: Path) -> None:
        self.lives: list[Process] = []
        self._command: tuple[str | Path, ...] = ()

        def start_one(*command: str | Path) -> Process:
            self._command = command
            self.lives.append(start(*command))
            return self.lives[-1]

        super().__init__(start_one, file)
        self._log = Path(f"{file}-wal")

    def wait_for_write(self) -> None:
        """Wait until it stores something, but not long: there may be nothing to store any more."""
        before, until = self._log.stat(), time.monotonic() + WRITE_SECONDS
        while time.monotonic() < until:
            now = self._log.stat()
            if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                return

    def suffer(self, kill: Kill) -> None:
        """Kill it, and start it again."""
        self.kill()
        time.sleep(kill.away)
        if kill.starting:
            again = self._start_program(*self._command)
            time.sleep(kill.starting)
            again.kill()
        self.start()


class Runs:
    """One worker of a sample, and its clients one after another; the first runs without kills, for comparison."""

    def __init__(
        self, case: Case, sample: Sample, scheduler: KilledScheduler, model: ScriptedModel, folder: Path
    ) -> None:
        self._sample, self._scheduler, self._model, self._folder = sample, scheduler, model, folder
        folders = {"EMAIL_DIRECTORY": str(folder), "CONTENT_DIRECTORY": str(folder)}
        sample.settings |= {"ENDPOINT": scheduler.address, **folders}
        self._conversations: dict[str, list[str]] = {}  # of the runs so far
        self._orchestrations: dict[str, dict[str, int]] = {}
        self._kills = 0
        self._clients = [self._start_client() for _ in range(2)]  # while the worker starts, which saves a second
        self.worker = sample.start_worker()
        self.usual = self._run([])
        assert turns(self.usual.left) == case.turns
        assert tuple(sorted(self.usual.left.files)) == case.files

    def run(self, kills: list[Kill]) -> list[float]:
        """Run the client while the scheduler is killed; ends when the client has ended.

        Returns the seconds lost per kill, if there was one before the end.
        """
        print(f"killed after {', '.join(map(str, kills))}", end="; ", flush=True)
        run = self._run(kills)
        assert run.left == self.usual.left
        print(f"took {run.seconds:.2f} s, usually {self.usual.seconds:.2f}", end="; ")
        print(f"model asked {run.requests}x, usually {self.usual.requests}x", end="; ")
        if not run.kills:
            print("no kill came in time", flush=True)
            return []
        lost = (run.seconds - self.usual.seconds) / run.kills
        print(f"lost {lost:.2f} s for each of {run.kills} kills", flush=True)
        return [lost]

    def end(self) -> None:
        """Check that nothing has changed since the runs, and that nobody has printed an error."""
        assert self._stored() == (self._conversations, self._orchestrations)
        assert not self._files()
        self.worker.kill()
        self._check_stderr(self.worker)
        self._scheduler.kill()
        assert "".join(life.errors for life in self._scheduler.lives) == ""

    def _start_client(self) -> Process:
        return self._sample.start_client(CLIENT, program="-c")

    def _run(self, kills: list[Kill]) -> Run:
        asked, in_time = len(self._model.requests), 0
        client = self._clients.pop() if self._clients else self._start_client()
        client.wait_for("Ready\n")
        with ThreadPoolExecutor() as pool:
            began = time.monotonic()
            ending = pool.submit(lambda: (self._wait_for(client), time.monotonic() - began))
            assert client.popen.stdin
            client.popen.stdin.write("\n")
            client.popen.stdin.flush()
            for kill in kills:
                time.sleep(kill.after)
                if kill.at_write:
                    self._scheduler.wait_for_write()
                over = ending.done()
                in_time += 0 if over else kill.count
                self._kills += kill.count
                self._scheduler.suffer(kill)
                if over:
                    break
            code, seconds = ending.result()
        assert code == 0, f"{client.output}\n{client.errors}\nworker:\n{self.worker.errors}"
        self._check_stderr(client)
        self._check_stderr(self.worker)
        return Run(seconds, len(self._model.requests) - asked, in_time, self._left_by(client))

    def _wait_for(self, client: Process) -> int | None:
        """The client's exit code; None if it hangs, and is killed."""
        try:
            return client.wait()
        except subprocess.TimeoutExpired:
            client.kill()
            return None

    def _check_stderr(self, process: Process) -> None:
        """Check that it only says that the scheduler is unreachable, and is back."""
        eventually(lambda: len(lines_about_the_scheduler(process)) % 2 == 0, "it says that the scheduler is back", 10)
        lines = lines_about_the_scheduler(process)
        assert len(lines) == complaints(process).count("\n"), process.errors
        assert lines == ["is unreachable", "is back"] * (len(lines) // 2)
        assert len(lines) <= 2 * self._kills

    def _left_by(self, client: Process) -> Left:
        conversations, orchestrations = self._stored()
        assert self._conversations.items() <= conversations.items(), "the results of earlier runs have not changed"
        assert self._orchestrations.items() <= orchestrations.items()
        new = sorted(
            (name.partition("@")[0], texts) for name, texts in conversations.items() if name not in self._conversations
        )
        ended = [events for name, events in orchestrations.items() if name not in self._orchestrations]
        self._conversations, self._orchestrations = conversations, orchestrations
        files = self._files()
        shutil.rmtree(self._folder, ignore_errors=True)  # a file that comes later is found by the next run
        output = shown(client) if self._sample.folder.name.startswith("03") else client.output
        return Left(in_comparable_words(output), new, sorted(ended, key=str), files)

    def _stored(self) -> tuple[dict[str, list[str]], dict[str, dict[str, int]]]:
        """All conversations with their questions and answers, and all orchestrations with their events by kind."""
        with scheduler_client(self._sample) as client:
            conversations = {
                f"{entity.id.entity.removeprefix('dafx-')}@{entity.id.key}": texts_of(str(entity.get_state()))
                for entity in client.get_all_entities(EntityQuery(include_state=True))
            }
            orchestrations = {}
            for state in client.get_all_orchestration_states():
                assert state.runtime_status is OrchestrationStatus.COMPLETED, state
                history = client.get_orchestration_history(state.instance_id)
                completed = [event.task_scheduled_id for event in history if isinstance(event, TaskCompletedEvent)]
                assert len(completed) == len(set(completed)), history
                kinds = Counter(type(event).__name__ for event in history)
                orchestrations[state.instance_id] = {kind: kinds[kind] for kind in COUNTED}
        return conversations, orchestrations

    def _files(self) -> dict[str, str]:
        """The files that the activities have written, including unfinished ones."""
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        return {
            in_comparable_words(path.relative_to(self._folder).as_posix()): in_comparable_words(path.read_text("utf-8"))
            for path in files
        }


def texts_of(state: str) -> list[str]:
    """The questions and answers of a stored conversation, each question with one answer."""
    entries = json.loads(state)["data"]["conversationHistory"]
    kinds = [entry["$type"] for entry in entries]
    assert kinds == ["request", "response"] * (len(entries) // 2)
    questions, answers = entries[::2], entries[1::2]
    ids = [entry["correlationId"] for entry in questions]
    assert ids == [entry["correlationId"] for entry in answers]
    assert len(ids) == len(set(ids))
    messages = [[content for message in entry["messages"] for content in message["contents"]] for entry in entries]
    return [in_comparable_words("".join(content.get("text", "") for content in contents)) for contents in messages]


def turns(left: Left) -> dict[str, list[int]]:
    """By agent: the length of each conversation."""
    found: dict[str, list[int]] = {}
    for agent, texts in left.conversations:
        assert all(texts)
        found.setdefault(agent, []).append(len(texts) // 2)
    return found


def in_comparable_words(text: str) -> str:
    for pattern, word in VARYING:
        text = re.sub(pattern, word, text)
    return text


@pytest.mark.long
@pytest.mark.timeout(120 + 60 * RUNS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_run_with_kills_leaves_what_one_without_leaves(
    case: Case, sample: Callable[[str], Sample], start: Start, model: ScriptedModel, tmp_path: Path
) -> None:
    seed = int(os.environ.get("KILLS_SEED") or time.time_ns() % 10**6)
    print(f"\nKILLS_SEED={seed} sample {case.number}", flush=True)
    choices = random.Random(f"{seed} {case.number}")  # noqa: S311
    model.delay, model.token_delay = MODEL_SECONDS, 0.001
    one = sample(case.number)
    if case.number == "03":
        if not redis_program():
            pytest.skip("needs a real redis-server")
        one.settings["REDIS_CONNECTION_STRING"] = RedisServer(start).address
    scheduler = KilledScheduler(start, tmp_path / "state.db")
    runs = Runs(case, one, scheduler, model, tmp_path.resolve() / "effects")
    lost = []
    for number in range(1, RUNS + 1):
        print(f"{case.number} run {number} of {RUNS}", end=": ")
        lost += runs.run(plan(choices, runs.usual.seconds))
    runs.end()
    if lost:
        print(f"{case.number}: {RUNS} runs, median lost {statistics.median(lost):.2f} s a kill")


def test_a_workers_call_whose_answer_was_lost_may_be_repeated(scheduler: str, hub: str) -> None:
    """The scheduler dies after it has stored a result, and before the worker sees that: the result counts once."""
    with RawScheduler(scheduler, hub) as raw:
        stream = raw.work()

        def take(kind: str) -> pb.WorkItem:
            item = stream.take()
            assert item.HasField(kind), item  # type: ignore[arg-type]
            return item

        def twice(method: str, request: Any) -> None:
            for _ in range(2):
                raw.call(method, request, method + request.completionToken)

        def step_done(*actions: pb.OrchestratorAction) -> None:
            token = take("orchestratorRequest").completionToken
            response = pb.OrchestratorResponse(instanceId=instance, completionToken=token, actions=actions)
            twice("CompleteOrchestratorTask", response)

        instance = raw.start("o")
        twice(
            "AbandonTaskOrchestratorWorkItem",
            pb.AbandonOrchestrationTaskRequest(completionToken=take("orchestratorRequest").completionToken),
        )
        step_done(call_activity(1))
        token = take("activityRequest").completionToken
        twice("AbandonTaskActivityWorkItem", pb.AbandonActivityTaskRequest(completionToken=token))
        token = take("activityRequest").completionToken
        twice("CompleteActivityTask", pb.ActivityResponse(instanceId=instance, taskId=1, completionToken=token))
        step_done(finish())
        assert raw.status(instance) == "COMPLETED"
        assert sum(event.HasField("taskCompleted") for event in raw.history(instance)) == 1

        raw.call("SignalEntity", pb.SignalEntityRequest(instanceId="@e@1", name="run", requestId="1"))
        token = take("entityRequest").completionToken
        twice("AbandonTaskEntityWorkItem", pb.AbandonEntityTaskRequest(completionToken=token))
        token = take("entityRequest").completionToken
        result = pb.EntityBatchResult(completionToken=token, results=[pb.OperationResult()])
        result.entityState.value = "1"
        twice("CompleteEntityTask", result)
        entity = raw.entity("@e@1")
        assert entity
        assert entity.serializedState.value == "1"
        stream.end()
