"""Simulates the world around a task hub: clients, workers that die, clock jumps, crashes. All follow from one seed.

`python tests/simulation.py 123` runs seed 123 and prints each step; a failing seed fails the same way each time.
"""

import json
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

import durabletask.internal.orchestrator_service_pb2 as pb
from google.protobuf.wrappers_pb2 import StringValue
from simulation_model import Answer, Delivery, Model, Wrong, expect, same
from simulation_work import (
    ACTIVITIES,
    ENTITIES,
    EVENTS,
    INSTANCES,
    ORCHESTRATIONS,
    do_activity,
    do_batch,
    do_step,
    random_script,
)

from local_services.scheduler.hub import Hub, request_id_of
from local_services.scheduler.limits import failure
from local_services.scheduler.records import (
    FAILED,
    FINISHED,
    PENDING,
    RUNNING,
    SUSPENDED,
    Changes,
    Message,
    Refused,
    timestamp,
)
from local_services.scheduler.store import StateUnusable, Store, _orchestration_row

HUB = "hub"
SECOND = 1_000_000  # microseconds
BEGINNING = 1_800_000_000 * SECOND


@dataclass(eq=False)
class Worker:
    """A worker's stream, with its unfinished work."""

    number: int
    request: pb.GetWorkItemsRequest
    hands: list[Delivery] = field(default_factory=list)


def random_worker(rng: random.Random) -> pb.GetWorkItemsRequest:
    """A worker's request: with filters, limits, neither or both."""
    request = pb.GetWorkItemsRequest()
    if rng.random() < 0.3:
        filters = request.workItemFilters
        filters.orchestrations.extend(pb.OrchestrationFilter(name=n) for n in ORCHESTRATIONS if rng.random() < 0.6)
        filters.activities.extend(pb.ActivityFilter(name=n) for n in ACTIVITIES if rng.random() < 0.6)
        filters.entities.extend(pb.EntityFilter(name=n) for n in ("left", "right") if rng.random() < 0.6)
    if rng.random() < 0.3:
        request.maxConcurrentOrchestrationWorkItems = rng.randint(1, 2)
        request.maxConcurrentActivityWorkItems = rng.randint(1, 2)
        request.maxConcurrentEntityWorkItems = 1
    return request


def takes(request: pb.GetWorkItemsRequest, item: pb.WorkItem) -> bool:
    """Whether a worker's filters accept an item."""
    if not request.HasField("workItemFilters"):
        return True
    filters = request.workItemFilters
    match item.WhichOneof("request"):
        case "orchestratorRequest":
            started = [e.executionStarted.name for e in _events(item) if e.HasField("executionStarted")]
            return not started or started[0] in [f.name for f in filters.orchestrations]
        case "activityRequest":
            return item.activityRequest.name in [f.name for f in filters.activities]
        case _:
            return item.entityRequest.instanceId[1:].partition("@")[0] in [f.name for f in filters.entities]


def _events(item: pb.WorkItem) -> list[pb.HistoryEvent]:
    return [*item.orchestratorRequest.pastEvents, *item.orchestratorRequest.newEvents]


# The world -----------------------------------------------------------------------------------------------------


class Crashed(Exception):
    """The scheduler has died during a call: the caller has no answer."""


class Simulation:
    """A run. Raises Wrong if the scheduler does not do what it must.

    Args:
        seed: all random choices follow from it.
        steps: how many things happen before all faults end.
        say: prints what happens.
        store, hub: the classes under test; the simulation must find errors in broken ones.
    """

    def __init__(
        self,
        seed: int,
        steps: int = 150,
        say: Callable[[str], None] = lambda _: None,
        store: Callable[[str], Store] = Store,
        hub: Callable[..., Hub] = Hub,
    ) -> None:
        self._rng = random.Random(seed)  # noqa: S311 (a simulation, no secret)
        self._steps, self._say, self._store_class, self._hub_class = steps, say, store, hub
        self._now = BEGINNING
        self._model = Model()
        self._workers: dict[int, Worker] = {}
        self._late: list[tuple[str, Any]] = []  # completions of workers whose stream has ended, and repeated ones
        self._repeats: list[tuple[str, Any, str]] = []  # calls whose answer was lost, and others to repeat
        self._numbers = count(1)
        self._patience = 8  # how often work is abandoned: after ten times it would fail
        self._faults = True

    def run(self) -> None:
        """Run it in a temporary folder."""
        memory = Path("/dev/shm")  # noqa: S108 (a folder of our own in it)
        self._folder = Path(tempfile.mkdtemp("", "simulation-", memory if memory.is_dir() else None))
        try:
            self._open(self._folder / "0.db")
            for _ in range(self._steps):
                self._something()
            self._end()
        finally:
            self._store.close()
            shutil.rmtree(self._folder)

    # The scheduler, used as in service.py --------------------------------------------------------------------------

    def _open(self, path: Path) -> None:
        """A scheduler starts on a file."""
        self._path, self._store = path, self._store_class(str(path))
        self._ids = count(max(self._store.last_id(), self._now) + 1)
        self._load()

    def _load(self) -> None:
        nonce = f"{self._rng.getrandbits(32):x}"
        self._hub = self._hub_class(self._store.of(HUB), self._ids, nonce)
        self._hub.load(self._now)
        self._model.ended(None)
        self._model.check(self._hub)

    def _crash(self, is_stored: bool = True) -> None:
        """Kill the scheduler, and start another on the file: everything is there, if the last change is stored."""
        self._say("  the scheduler is killed, and starts again")
        before = _memory(self._hub) if is_stored and not _grants_when_done(self._hub) else None
        path = self._folder / f"{next(self._numbers)}.db"
        for suffix in ("", "-wal"):
            if (file := Path(f"{self._path}{suffix}")).exists():
                shutil.copy(file, f"{path}{suffix}")
        self._store.close()
        for worker in list(self._workers.values()):
            self._dies(worker)
        self._now += self._rng.choice([1, SECOND, 300 * SECOND])
        self._open(path)
        if before is not None:
            same("what the scheduler has after its restart", _memory(self._hub), before)

    def _do(self, work: Callable[[Hub], Any], done: Callable[[Answer], None]) -> None:
        """A call: the hub does it, stores it, and then answers it. Each of these may fail.

        Raises Crashed if the caller gets no answer.
        """
        self._now += self._rng.randint(1, 1000)
        self._model.now = self._now
        try:
            answer = work(self._hub)
        except Refused as refused:
            answer = refused.code
        items = self._hub.hand_out()
        changes = self._hub.take_changes()
        fate = self._rng.random() if self._faults else 1
        if fate < 0.01:
            self._say("  and is not stored")
            self._crash(is_stored=False)
            raise Crashed
        try:
            if changes:
                with self._full_disk() if fate < 0.03 else nullcontext():
                    self._store.commit(HUB, changes)
        except StateUnusable:
            self._say("  and cannot be stored")
            self._start_over()
            raise Crashed from None
        done(answer)
        if 0.03 < fate < 0.05:
            self._crash()
            raise Crashed
        self._model.check(self._hub)
        for number, item in items:
            self._hand(self._workers[number], item)

    def _full_disk(self) -> Any:
        """Make the store fail at the end of a change."""
        write = self._store._write

        def write_and_fail(hub: str, changes: Changes) -> None:
            write(hub, changes)
            raise sqlite3.OperationalError("database or disk is full")

        return patch.object(self._store, "_write", write_and_fail)

    def _start_over(self) -> None:
        """Load the hub again, without what was not stored. The workers' streams continue."""
        for worker in self._workers.values():
            worker.hands.clear()
        self._load()
        for worker in self._workers.values():
            self._hub.connect(worker.number, worker.request, self._now)

    def _hand(self, worker: Worker, item: pb.WorkItem) -> None:
        delivery = self._model.delivered(worker.number, item)
        expect(takes(worker.request, item), f"worker {worker.number} receives what it does not accept")
        kind = item.WhichOneof("request")
        self._say(f"  worker {worker.number} receives {_shown(item)}")
        worker.hands.append(delivery)
        limit = {
            "orchestratorRequest": worker.request.maxConcurrentOrchestrationWorkItems,
            "activityRequest": worker.request.maxConcurrentActivityWorkItems,
            "entityRequest": worker.request.maxConcurrentEntityWorkItems,
        }[kind or ""]
        has = [d for d in worker.hands if d.item.WhichOneof("request") == kind and d.token in self._model.deliveries]
        expect(not limit or len(has) <= limit, f"worker {worker.number} receives more than its limit")

    # What happens --------------------------------------------------------------------------------------------------

    def _something(self) -> None:
        happenings: dict[Callable[[], None], float] = {
            self._client_calls: 4,
            self._worker_works: 8,
            self._worker_connects: 1 if len(self._workers) < 3 else 0.1,
            self._worker_disconnects: 0.3,
            self._time_passes: 2,
            self._late_completion: 0.5 if self._late else 0,
            self._repeat: 2 if self._repeats else 0,
        }
        happening = self._rng.choices(list(happenings), list(happenings.values()))[0]
        try:
            happening()
        except Crashed:
            return

    def _time_passes(self) -> None:
        by = self._rng.choices([0, SECOND, 15 * SECOND, 2000 * SECOND, -5 * SECOND], [5, 5, 3, 0.3, 0.3])[0]
        due = self._hub.next_due()
        self._now = due if by == 0 and due is not None and due > self._now else self._now + by
        self._say(f"time: {(self._now - BEGINNING) / SECOND}")
        self._tick()

    def _tick(self) -> None:
        self._do(lambda hub: hub.tick(self._now), lambda _: self._model.ticked())

    def _call(self, method: str, request: Any, header: str = "") -> None:
        self._say(f"client: {method} {_flat(request)} {header}")
        request_id = request_id_of(method, request, header)
        if request_id and self._rng.random() < 0.1:
            self._repeats.append((method, request, header))
        try:
            self._do(
                lambda hub: hub.call(method, _sent(request), self._now, request_id),
                lambda answer: self._model.called(
                    method, request, f"{method} {request_id}" if request_id else "", answer
                ),
            )
        except Crashed:
            if request_id and self._rng.random() < 0.8:
                self._repeats.append((method, request, header))
            raise

    def _repeat(self) -> None:
        self._call(*self._repeats.pop(self._rng.randrange(len(self._repeats))))

    def _client_calls(self) -> None:
        rng = self._rng
        unique = f"{rng.getrandbits(40):x}"
        method = rng.choices(
            ["Start", "RaiseEvent", "SignalEntity", "Suspend", "Resume", "Terminate", "Restart", "Rewind", "Purge"],
            [7, 5, 6, 1, 2, 0.7, 0.7, 4, 0.7],
        )[0]
        fitting = {"Restart": FINISHED, "Purge": FINISHED, "Rewind": {FAILED}, "Resume": {SUSPENDED}}
        wanted = fitting.get(method, {PENDING, RUNNING, SUSPENDED})
        ids = [i.id for i in self._model.instances.values() if i.status in wanted]
        instance = rng.choice(ids if ids and rng.random() < 0.8 else [*INSTANCES, *self._model.instances])
        request: Any
        match method:
            case "Start":
                request = pb.CreateInstanceRequest(instanceId=rng.choice(INSTANCES), name=rng.choice(ORCHESTRATIONS))
                request.input.value = json.dumps(random_script(rng))
                replaceable = rng.choice([set(), set(), FINISHED, FINISHED, FINISHED | {PENDING, RUNNING, SUSPENDED}])
                request.orchestrationIdReusePolicy.replaceableStatus.extend(sorted(replaceable))
                if rng.random() < 0.3:
                    request.version.value = "1.0"
                    request.tags["owner"] = unique
                    request.parentTraceContext.traceParent = f"00-{rng.getrandbits(128):032x}-{1:016x}-01"
                if rng.random() < 0.15:
                    start_at = self._now + rng.choice([-SECOND, SECOND, 20 * SECOND])
                    request.scheduledStartTimestamp.CopyFrom(timestamp(start_at))
            case "RaiseEvent":
                data = StringValue(value=json.dumps(unique))
                request = pb.RaiseEventRequest(instanceId=instance, name=_any_case(rng, rng.choice(EVENTS)), input=data)
            case "SignalEntity":
                operation = rng.choice(["add", "add", "add", "relay", "launch", "fail", "delete"])
                request = pb.SignalEntityRequest(instanceId=rng.choice(ENTITIES), name=operation, requestId=unique)
                request.input.value = json.dumps(unique)
                if rng.random() < 0.2:
                    request.scheduledTime.CopyFrom(timestamp(self._now + rng.choice([-SECOND, SECOND, 30 * SECOND])))
            case "Terminate":
                request = pb.TerminateRequest(instanceId=instance, recursive=rng.random() < 0.5)
                request.output.value = json.dumps(unique)
            case "Restart":
                request = pb.RestartInstanceRequest(instanceId=instance, restartWithNewInstanceId=rng.random() < 0.3)
            case "Purge" if rng.random() < 0.3:
                request = pb.PurgeInstancesRequest(recursive=rng.random() < 0.5)
                request.purgeInstanceFilter.runtimeStatus.extend(rng.sample(sorted(FINISHED), 2))
            case "Purge":
                request = pb.PurgeInstancesRequest(instanceId=instance, recursive=rng.random() < 0.5)
            case _:
                request = getattr(pb, f"{method}{'Instance' if method == 'Rewind' else ''}Request")(instanceId=instance)
        header = unique if rng.random() < 0.7 else ""
        name = {"Start": "StartInstance", "Purge": "PurgeInstances"}.get(method, method)
        if method in ("Suspend", "Resume", "Terminate", "Restart", "Rewind"):
            name += "Instance"
        self._call(name, request, header)

    # Workers -------------------------------------------------------------------------------------------------------

    def _worker_connects(self, request: pb.GetWorkItemsRequest | None = None) -> None:
        worker = Worker(next(self._numbers), request if request is not None else random_worker(self._rng))
        self._workers[worker.number] = worker
        self._say(f"worker {worker.number} connects: {_flat(worker.request)}")
        self._do(lambda hub: hub.connect(worker.number, worker.request, self._now), lambda _: None)

    def _worker_disconnects(self) -> None:
        if self._workers:
            worker = self._rng.choice(list(self._workers.values()))
            self._say(f"worker {worker.number} disconnects")
            self._dies(worker)
            self._do(lambda hub: hub.disconnect(worker.number, self._now), lambda _: self._model.ended(worker.number))

    def _dies(self, worker: Worker) -> None:
        """Its stream ends. The worker may be alive, and continue its work."""
        del self._workers[worker.number]
        for delivery in worker.hands:
            if self._rng.random() < 0.5:
                self._late.append(self._work(delivery))

    def _worker_works(self) -> None:
        hands = [(worker, delivery) for worker in self._workers.values() for delivery in worker.hands]
        if not hands:
            return
        worker, delivery = self._rng.choice(hands)
        worker.hands.remove(delivery)
        method, response = self._work(delivery)
        if self._faults and self._rng.random() < 0.05:
            self._late.append((method, response))
        if self._patience and self._rng.random() < 0.05:
            self._patience -= 1
            method, response = self._spoil(method, response)
        self._complete(method, response)

    def _late_completion(self) -> None:
        self._complete(*self._late.pop(self._rng.randrange(len(self._late))))

    def _complete(self, method: str, response: Any) -> None:
        self._say(f"worker: {method} {_flat(response)}")
        self._do(
            lambda hub: hub.call(method, _sent(response), self._now),
            lambda answer: self._model.completed(method, response, answer, self._hub),
        )

    def _work(self, delivery: Delivery) -> tuple[str, Any]:
        """What a worker answers."""
        item, rng = delivery.item, self._rng
        match item.WhichOneof("request"):
            case "orchestratorRequest":
                return "CompleteOrchestratorTask", do_step(delivery.token, item.orchestratorRequest)
            case "activityRequest":
                fails = item.activityRequest.name == "flaky" and rng.random() < 0.7
                return "CompleteActivityTask", do_activity(delivery.token, item.activityRequest, fails)
            case _:
                operations = len(item.entityRequest.operations)
                done = rng.randint(1, operations) if rng.random() < 0.2 else operations
                if rng.random() < 0.02:
                    details = failure("Broken", "All failed.")
                    return "CompleteEntityTask", pb.EntityBatchResult(
                        completionToken=delivery.token, failureDetails=details
                    )
                return "CompleteEntityTask", do_batch(delivery.token, item.entityRequest, done)

    def _spoil(self, method: str, response: Any) -> tuple[str, Any]:
        """An answer that is not allowed, or another answer instead."""
        token = response.completionToken
        match self._rng.choice(["abandon", "abandon", "other instance", "other kind"]):
            case "other instance" if method != "CompleteEntityTask":
                response.instanceId += "x"
                return method, response
            case "other kind" if method != "CompleteActivityTask":
                return "CompleteActivityTask", pb.ActivityResponse(completionToken=token, instanceId="i0", taskId=1)
        match method:
            case "CompleteOrchestratorTask":
                return "AbandonTaskOrchestratorWorkItem", pb.AbandonOrchestrationTaskRequest(completionToken=token)
            case "CompleteActivityTask":
                return "AbandonTaskActivityWorkItem", pb.AbandonActivityTaskRequest(completionToken=token)
            case _:
                return "AbandonTaskEntityWorkItem", pb.AbandonEntityTaskRequest(completionToken=token)

    # The end -------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Without faults, with workers that accept all work, time, and the missing events, everything must finish."""
        self._say("no more faults from now on")
        self._faults = False
        self._worker_connects(pb.GetWorkItemsRequest())
        while self._repeats:
            self._repeat()
        while self._late:
            self._late_completion()
        for _ in range(60):
            self._settle()
            unfinished = [instance for instance in self._model.instances.values() if instance.lives]
            if not unfinished:
                break
            for instance in unfinished:
                self._call("ResumeInstance", pb.ResumeRequest(instanceId=instance.id))
                for event in EVENTS:
                    data = StringValue(value="0")
                    self._call("RaiseEvent", pb.RaiseEventRequest(instanceId=instance.id, name=event, input=data))
        else:
            raise Wrong(f"{[instance.id for instance in unfinished]} do not finish")  # pyright: ignore
        self._crash()
        for entity, thing in self._model.things.items():
            expect(not thing.queue, f"{entity} has not done {thing.queue}")
        self._check_tables(len(self._model.instances))
        purge = pb.PurgeInstancesRequest()
        purge.purgeInstanceFilter.runtimeStatus.extend(sorted(FINISHED))
        self._call("PurgeInstances", purge)
        self._check_tables(0)

    def _settle(self) -> None:
        """Let work and time continue until nothing happens any more."""
        for _ in range(3000):
            if any(worker.hands for worker in self._workers.values()):
                self._worker_works()
            elif (due := self._hub.next_due()) is not None:
                self._now = max(self._now, due)
                self._say(f"time: {(self._now - BEGINNING) / SECOND}")
                self._tick()
            else:
                return
        raise Wrong("it does not finish")

    def _check_tables(self, orchestrations: int) -> None:
        """Check that nothing is left of finished work."""
        tables = {
            "orchestrations": "orchestrations",
            "messages": "messages",
            "activities": "activities",
            "locked entities": "entities WHERE lock != ''",
            "entities without a state": "entities WHERE state IS NULL",
            "histories of nothing": "history WHERE key NOT IN (SELECT key FROM orchestrations)",
        }
        left = {name: self._store.rows(f"SELECT count(*) FROM {what}")[0][0] for name, what in tables.items()}  # noqa: S608
        same("what is stored", left, dict.fromkeys(tables, 0) | {"orchestrations": orchestrations})


def _memory(hub: Hub) -> list[Any]:
    """Everything that must be the same after a restart."""
    live, busy = hub.orchestrations.live.values(), hub.entities._busy.values()
    activities = [activity for activities in hub.work._activities.values() for activity in activities.values()]
    return [
        [(_orchestration_row(HUB, o), _messages(o.inbox), _messages(o.timers.values())) for o in _sorted(live)],
        # An entity without state and lock only has an inbox.
        [(e.id, (e.state or e.lock) and e.modified, e.state, e.owner, _messages(e.inbox)) for e in _sorted(busy)],
        [(activity.id, activity.key, activity.request) for activity in _sorted(activities)],
        _messages(hub._scheduled.values()),
    ]


def _grants_when_done(hub: Hub) -> bool:
    """Whether an entity's lock is granted when its worker is done, which includes a restart without a worker."""
    busy = hub.entities._busy.values()
    return any(e.attempts.token and not e.lock and e.inbox[0].event.HasField("entityLockRequested") for e in busy)


def _sorted(records: Iterable[Any]) -> list[Any]:
    return sorted(records, key=lambda record: record.id)


def _messages(messages: Iterable[Message]) -> list[Any]:
    return [(message.id, message.due, message.event, message.trace) for message in _sorted(messages)]


def _sent(message: Any) -> Any:
    """A copy of a message, as it arrives."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _any_case(rng: random.Random, text: str) -> str:
    return rng.choice([text, text.upper(), text.lower()])


def _flat(message: Any) -> str:
    """A protobuf message on one line."""
    return " ".join(str(message).split())


def _shown(item: pb.WorkItem) -> str:
    """A work item in a few words."""
    match item.WhichOneof("request"):
        case "orchestratorRequest":
            request = item.orchestratorRequest
            events = [event.WhichOneof("eventType") for event in request.newEvents]
            return (
                f"step of {request.instanceId}, after {len(request.pastEvents)} events: {', '.join(map(str, events))}"
            )
        case "activityRequest":
            request = item.activityRequest
            return f"{request.name} {request.taskId} of {request.orchestrationInstance.instanceId}"
        case _:
            operations = [operation.operation + operation.input.value for operation in item.entityRequest.operations]
            return f"{item.entityRequest.instanceId}: {operations}"


def main() -> None:
    """Run these seeds, and print each step."""
    for seed in map(int, sys.argv[1:]):
        numbers = count(1)
        Simulation(seed, say=lambda text: print(f"{next(numbers):5} {text}")).run()  # noqa: B023
        print(f"seed {seed}: correct")


if __name__ == "__main__":
    main()
