"""Simulations find no error in a task hub, and find each error that is made on purpose.

50 seeds, 500 with --all, or the number in the environment: `SEEDS=5000 python3 run.py test tests/test_simulation.py`.
A failing test prints its seed; `python tests/simulation.py SEED` shows the steps.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import pytest
import task_hub
from simulation import Simulation
from task_hub import TaskHub, call_entity, entity_message, finish

from local_services.scheduler import work
from local_services.scheduler.hub import Hub
from local_services.scheduler.records import RUNNING, Changes, Kind, Message, Orchestration, Record
from local_services.scheduler.store import StateUnusable, Store

ENOUGH = 100  # within this number of seeds, an error made on purpose must be found


def mistake_of(seed: int, **parts: Any) -> str:
    """The error with this seed; '' if there is none."""
    try:
        Simulation(seed, **parts).run()
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}"
    return ""


@pytest.mark.timeout(0)  # SEEDS may be any number
def test_nothing_goes_wrong(pytestconfig: pytest.Config) -> None:
    seeds = int(os.environ.get("SEEDS") or (500 if pytestconfig.getoption("--all") else 50))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        mistakes = [mistake for mistake in processes.map(mistake_of, range(seeds), chunksize=10) if mistake]
    assert not mistakes, "\n".join([*mistakes[:5], f"{len(mistakes)} seeds in total; python tests/simulation.py SEED"])


def test_a_seed_is_always_the_same() -> None:
    def steps() -> list[str]:
        said: list[str] = []
        Simulation(7, say=said.append).run()
        return [text for text in said if "rewindOrchestration" not in text]  # the SDK makes a random id in it

    assert steps() == steps()


def test_what_a_worker_did_before_a_restart_does_not_undo_what_others_did_after_it() -> None:
    """20,000 seeds did not find this: the late result of an operation that waited while the state changed."""
    hub = TaskHub()
    worker = hub.connect()
    hub.start("owner", "first")
    hub.complete(worker.take(), task_hub.lock(1, "section of the first", "@list@a"))
    has_lock = worker.take()
    hub.start("owner", "second")
    hub.complete(worker.take(), task_hub.lock(1, "section of the second", "@list@a"))  # waits
    hub.complete(has_lock, call_entity(2, "@list@a"))
    late = worker.take()
    hub.call("TerminateInstance", pb.TerminateRequest(instanceId="first"))
    hub.restart()
    worker = hub.connect()
    hub.complete(worker.take(), call_entity(2, "@list@a"))
    hub.sleep(30)
    hub.complete_batch(worker.take(), "done by the second")
    unlocked = pb.EntityUnlockSentEvent(criticalSectionId="section of the second")
    unlocked.targetInstanceId.value = "@list@a"
    hub.complete(worker.take(), entity_message(3, entityUnlockSent=unlocked), finish())
    hub.complete_batch(late, "done by the first, who did not see it")
    entity = hub.entity("@list@a")
    assert entity
    assert entity.serializedState.value == "done by the second"


@pytest.mark.parametrize("ending", ["abandons it", "dies"])
def test_a_lock_that_waits_for_a_worker_is_granted_when_that_worker_fails(ending: str) -> None:
    """Found by seed 61241: the owner is terminated while a worker has its call, and nothing else happens after that."""
    hub = TaskHub()
    worker = hub.connect()
    hub.start("owner", "first")
    hub.complete(worker.take(), task_hub.lock(1, "section of the first", "@list@a"))
    has_lock = worker.take()
    hub.start("owner", "second")
    hub.complete(worker.take(), task_hub.lock(1, "section of the second", "@list@a"))  # waits
    hub.complete(has_lock, call_entity(2, "@list@a"))
    item = worker.take()
    hub.call("TerminateInstance", pb.TerminateRequest(instanceId="first"))
    if ending == "dies":
        hub.disconnect(worker)
        worker = hub.connect()
    else:
        hub.abandon(item)
    assert task_hub.new_events(worker.take()) == ["entityLockGranted"]


# Errors made on purpose ----------------------------------------------------------------------------------------


class _SkipsMessages(Store):
    """Does not write each tenth message."""

    written = 0

    def commit(self, hub: str, changes: Changes) -> None:
        for number in list(changes.messages):
            self.written += 1
            if self.written % 10 == 0:
                del changes.messages[number]
        super().commit(hub, changes)


class _SkipsHistory(Store):
    """Does not write each tenth part of a history."""

    written = 0

    def commit(self, hub: str, changes: Changes) -> None:
        self.written += len(changes.history)
        if changes.history and self.written % 10 == 0:
            changes.history.pop()
        super().commit(hub, changes)


class _CommitsLate(Store):
    """Writes a change only when the next one comes."""

    waiting: Changes | None = None

    def commit(self, hub: str, changes: Changes) -> None:
        if self.waiting:
            super().commit(hub, self.waiting)
        self.waiting = changes


class _WritesInParts(Store):
    """Writes a change in parts, not in one transaction."""

    def commit(self, hub: str, changes: Changes) -> None:
        try:
            self._write(hub, changes)
        except Exception as error:
            raise StateUnusable from error


class _KeepsWhatIsDone(Store):
    """Does not remove messages that have been seen."""

    def commit(self, hub: str, changes: Changes) -> None:
        changes.removed_messages.clear()
        super().commit(hub, changes)


class _LeavesActivities(Store):
    """Does not remove the activities that are done."""

    def commit(self, hub: str, changes: Changes) -> None:
        changes.removed_activities.clear()
        super().commit(hub, changes)


class _ForgetsLocks(Store):
    """Writes entities without their locks."""

    def _write(self, hub: str, changes: Changes) -> None:
        locks = {name: (entity.lock, entity.owner) for name, entity in changes.entities.items()}
        for entity in changes.entities.values():
            entity.lock = entity.owner = ""
        super()._write(hub, changes)
        for name, (lock, owner) in locks.items():
            changes.entities[name].lock, changes.entities[name].owner = lock, owner


class _ForgetsTimers(Hub):
    """Loses what is due in five seconds or later when it restarts."""

    def load(self, now: int) -> None:
        super().load(now)
        self._schedule = [entry for entry in self._schedule if entry[0] < now + 5_000_000]


class _FiresEarly(Hub):
    """Delivers what is due within the next second."""

    def tick(self, now: int) -> None:
        super().tick(now + 1_000_000)


class _ForgetsAnswers(Hub):
    """Does a repeated request again."""

    def call(self, method: str, request: Any, now: int, request_id: str = "") -> Any:
        return super().call(method, request, now)


class _KeepsTheTime(Hub):
    """Gives an entity the clock's time, even after the clock was set back."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        finish = self.entities._finish

        def finish_now(entity: Any, done: list[Message]) -> None:
            finish(entity, done)
            entity.modified = self.now

        self.entities._finish = finish_now


class _CountsTwice(Hub):
    """Accepts a repeated or a late completion."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        take, taken = self.work._take, {}

        def take_again(token: str, kind: Kind, instance: str | None = None, task: int | None = None) -> Any:
            delivery = taken[token] = take(token, kind, instance, task) or taken.get(token)
            if delivery and not delivery.record.attempts.token:
                delivery.record.attempts.token = token
                delivery.worker.deliveries[token] = self.work._deliveries[token] = delivery
            return delivery

        self.work._take = take_again


class _TakesAll(Hub):
    """Does not check to which work a completion belongs."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        take = self.work._take
        self.work._take = lambda token, kind, instance=None, task=None: take(token, kind)


class _LosesWork(Hub):
    """Does not redeliver the work of a dead worker."""

    def disconnect(self, worker: int, now: int) -> None:
        self.now = now
        self.work._workers.pop(worker, None)


class _NeverWakes(Hub):
    """Does not redeliver abandoned work."""

    def wake(self, record: Record, when: int) -> None:
        pass


class _StepsOnSuspended(Hub):
    """Sends steps of suspended orchestrations to workers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        fill = self.steps.fill

        def fill_anyway(item: pb.OrchestratorRequest, orchestration: Orchestration, delivery: work.Delivery) -> None:
            status, orchestration.status = orchestration.status, RUNNING
            fill(item, orchestration, delivery)
            orchestration.status = status

        self.steps.fill = fill_anyway


class _LeavesLocks(Hub):
    """Does not release the locks of an orchestration that ends."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.entities.release = lambda instance_id: None


class _LetsAnybodyIn(Hub):
    """Does operations of all callers on a locked entity."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        fill = self.entities.fill

        def fill_unlocked(item: pb.EntityBatchRequest, entity: Any, delivery: work.Delivery) -> None:
            lock, entity.lock = entity.lock, ""
            fill(item, entity, delivery)
            entity.lock = lock

        self.entities.fill = fill_unlocked


IN_STORE: list[type[Store]] = [
    _SkipsMessages,
    _SkipsHistory,
    _CommitsLate,
    _WritesInParts,
    _KeepsWhatIsDone,
    _LeavesActivities,
    _ForgetsLocks,
]
IN_HUB: list[type[Hub]] = [
    _ForgetsTimers,
    _FiresEarly,
    _ForgetsAnswers,
    _KeepsTheTime,
    _CountsTwice,
    _TakesAll,
    _LosesWork,
    _NeverWakes,
    _StepsOnSuspended,
    _LeavesLocks,
    _LetsAnybodyIn,
]


@pytest.mark.long
@pytest.mark.parametrize("store", IN_STORE)
def test_a_mistake_in_the_store_is_found(store: type[Store]) -> None:
    assert any(mistake_of(seed, store=store) for seed in range(ENOUGH))


@pytest.mark.long
@pytest.mark.parametrize("hub", IN_HUB)
def test_a_mistake_in_the_hub_is_found(hub: type[Hub]) -> None:
    assert any(mistake_of(seed, hub=hub) for seed in range(ENOUGH))
