"""Runs one measure, instead of a sample's client, in a process that can import the sample's modules.

`python -m benchmarks` starts it, with the sample's folder on the path: `python -m benchmarks.measures NAME OPTIONS`.
It prints a JSON list with a dict for each result.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil

from benchmarks.services import Failed, Stack
from runner.addresses import ROOT

Results = list[dict[str, Any]]

SECOND = 1000.0  # milliseconds
PATIENCE_SECONDS = 120.0


def result(measure: str, unit: str, values: list[float], direct: list[float] | None = None, **more: Any) -> Results:
    """The measured values, and the same without durability."""
    return [{"measure": measure, "unit": unit, "values": values, "direct": direct, **more}]


def took(call: Callable[[], Any]) -> float:
    """The time of a call, in milliseconds."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * SECOND


def side_by_side(durable: Callable[[], Any], direct: Callable[[], Any], runs: int) -> tuple[list[float], list[float]]:
    """The milliseconds of each run except the first. The two alternate, so that other load affects both."""
    times = [(took(durable), took(direct)) for _ in range(runs + 1)][1:]
    return [one for one, _ in times], [one for _, one in times]


class Direct:
    """Calls the model directly."""

    def __init__(self) -> None:
        self._client = openai.AzureOpenAI(
            azure_endpoint=os.environ["AZURE_OPENAI_ENDPOINT"],
            api_key=os.environ["AZURE_OPENAI_API_KEY"],
            api_version="2024-10-21",
        )

    def ask(self, *texts: str) -> str:
        """The answer to a conversation: instructions, a question, its answer, the next question, …"""
        said = self._client.chat.completions.create(model="offline-model", messages=_messages(texts))
        return said.choices[0].message.content or ""

    def stream(self, *texts: str) -> tuple[float, float]:
        """The same, streamed: milliseconds to the first and the last piece of the answer."""
        began = time.perf_counter()
        times = [
            time.perf_counter() - began
            for chunk in self._client.chat.completions.create(
                model="offline-model", messages=_messages(texts), stream=True
            )
            if chunk.choices and chunk.choices[0].delta.content
        ]
        return times[0] * SECOND, times[-1] * SECOND


def _messages(texts: tuple[str, ...]) -> list[Any]:
    return [
        {"role": "system" if not number else "user" if number % 2 else "assistant", "content": text}
        for number, text in enumerate(texts)
    ]


class CpuTime:
    """The processor time of processes in the body of the `with`, by their names."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()} | {"client": psutil.Process()}
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> "CpuTime":
        self._before = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = {name: seconds - self._before[name] for name, seconds in self._now().items()}

    def _now(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: time.user + time.system for name, time in times.items()}

    def a_turn(self, turns: int) -> dict[str, float]:
        """Milliseconds per turn."""
        return {name: seconds * SECOND / turns for name, seconds in self.seconds.items()}


# One after the other ------------------------------------------------------------------------------------------------

JOKER = "You are good at telling jokes."
FIRST, SECOND_QUESTION = "Tell me a joke about a pirate.", "Now explain that joke."


def turn(runs: int, **_: Any) -> Results:
    """The second turn of a conversation with Joker."""
    from hosting.agent_client import AgentClient
    from hosting.scheduler import scheduler_client

    joker = AgentClient(scheduler_client()).get_agent("Joker")
    direct = Direct()
    begun = [joker.create_session() for _ in range(runs + 1)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda session: joker.run(FIRST, session=session).text, begun))
    durable, plain = side_by_side(
        lambda: joker.run(SECOND_QUESTION, session=begun.pop()),
        lambda: direct.ask(JOKER, FIRST, answers.pop(), SECOND_QUESTION),
        runs,
    )
    return result("one turn (01)", "ms", durable, plain)


WRITER = "You refine short pieces of text. Write one sentence; when asked to improve one, polish it."
DRAFT, IMPROVE = "Write a concise inspirational sentence about learning.", "Improve that sentence, in under 25 words."
CHAIN = "single_agent_chaining_orchestration"


def direct_chain(direct: Direct) -> None:
    """The two calls of sample 04."""
    direct.ask(WRITER, DRAFT, direct.ask(WRITER, DRAFT), IMPROVE)


def chain(runs: int, **_: Any) -> Results:
    """Sample 04, from the start of the orchestration to its result."""
    from hosting.instance import start_or_resume
    from hosting.scheduler import scheduler_client
    from hosting.waiting import result_of

    direct = Direct()
    with scheduler_client() as client:
        times = side_by_side(
            lambda: result_of(client, start_or_resume(client, CHAIN, None, "learning"), PATIENCE_SECONDS),
            lambda: direct_chain(direct),
            runs,
        )
    return result("chain of two (04)", "ms", *times)


def two(runs: int, **_: Any) -> Results:
    """Sample 05, from the start of the orchestration to both answers."""
    from hosting.instance import start_or_resume
    from hosting.scheduler import scheduler_client
    from hosting.waiting import result_of

    direct, question, name = Direct(), "What is temperature?", "multi_agent_concurrent_orchestration"
    with scheduler_client() as client, ThreadPoolExecutor(2) as pool:
        times = side_by_side(
            lambda: result_of(client, start_or_resume(client, name, None, question), PATIENCE_SECONDS),
            lambda: list(pool.map(lambda expert: direct.ask(expert, question), ("A physicist.", "A chemist."))),
            runs,
        )
    return result("two at once (05)", "ms", *times)


def decision(waiting: int, **_: Any) -> Results:
    """Sample 07: many drafts wait for a decision at the same time; from each approval to its publication."""
    from hosting.scheduler import scheduler_client

    from models import Decision
    from review_status import EVENT
    from reviews import ORCHESTRATION, waiting_reviews

    times = []
    with scheduler_client() as client:
        for number in range(waiting):
            client.schedule_new_orchestration(ORCHESTRATION, input={"topic": f"tea, part {number}"})
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(drafts := waiting_reviews(client)) < waiting:
            if time.monotonic() > deadline:
                raise Failed(f"Only {len(drafts)} of {waiting} drafts wait for a decision.")
            time.sleep(0.1)
        for instance, review in drafts:
            approval = Decision(approved=True, attempt=review.attempt, decision_id=instance).model_dump()
            began = time.perf_counter()
            client.raise_orchestration_event(instance, EVENT, data=approval)
            state = client.wait_for_orchestration_completion(instance, timeout=PATIENCE_SECONDS)
            times.append((time.perf_counter() - began) * SECOND)
            if not state or state.runtime_status.name != "COMPLETED":
                raise Failed(f"A draft was approved but not published: {state}")
    return result("decision to completion (07)", "ms", times)


PLANNER = "You are an expert travel planner."
REMARK = "Thank you. Who are you, by the way?"  # no tools: they cost the same with and without durability


def stream(runs: int, **_: Any) -> Results:
    """Sample 03, from the question to the first and the last piece that the reader receives."""
    from hosting.agent_client import AgentClient
    from hosting.conversation import key_of
    from hosting.scheduler import scheduler_client

    from redis_stream import redis_client, stream_ttl
    from redis_stream_response_handler import RedisStreamResponseHandler

    agents = AgentClient(scheduler_client())
    planner = agents.get_agent("TravelPlanner")

    async def read() -> list[float]:
        session, times = planner.create_session(), []
        stored: Any = lambda _: agents.stored_conversation(session)  # noqa: E731 - for pyright, hosting is that of 01
        handler = RedisStreamResponseHandler(redis_client(), stream_ttl(), stored)
        began = time.perf_counter()
        run = planner.run(REMARK, session=session, options={"wait_for_response": False}).response_id
        assert run
        async with handler:
            await handler.announce(key_of(session), run)
            async for chunk in handler.read_stream(key_of(session), correlation_id=run):
                if chunk.text:
                    times.append(time.perf_counter() - began)
                if chunk.is_done:
                    break
        return times

    def durable() -> tuple[float, float]:
        times = asyncio.run(read())
        return times[0] * SECOND, times[-1] * SECOND

    direct = Direct()
    both = [(durable(), direct.stream(PLANNER, REMARK)) for _ in range(runs + 1)][1:]
    first, first_direct = [one[0] for one, _ in both], [one[0] for _, one in both]
    last, last_direct = [one[1] for one, _ in both], [one[1] for _, one in both]
    return [*result("first token (03)", "ms", first, first_direct), *result("last token (03)", "ms", last, last_direct)]


# In parallel --------------------------------------------------------------------------------------------------------


def chains(count: int, rounds: int, pids: dict[str, int]) -> Results:
    """Chains of sample 04, all started at the same time, until the last one is done."""
    from hosting.scheduler import scheduler_client

    direct = Direct()
    durable, plain = [], []
    with scheduler_client() as client, ThreadPoolExecutor(count) as pool:

        def run_chains(how_many: int) -> None:
            instances = [client.schedule_new_orchestration(CHAIN, input="learning") for _ in range(how_many)]
            wait = client.wait_for_orchestration_completion
            states = list(pool.map(lambda instance: wait(instance, timeout=PATIENCE_SECONDS), instances))
            if not all(state and state.runtime_status.name == "COMPLETED" for state in states):
                raise Failed("Not every chain has completed.")

        run_chains(20)
        with CpuTime(pids) as cpu:
            for _ in range(rounds):
                durable.append(took(lambda: run_chains(count)) / SECOND)
        for _ in range(rounds):
            plain.append(took(lambda: list(pool.map(lambda _: direct_chain(direct), range(count)))) / SECOND)
    turns = 2 * count * rounds
    return result(f"{count} chains of two at once (04)", "s", durable, plain, cpu_ms_a_turn=cpu.a_turn(turns))


TURNS_EACH = 5  # in a conversation, then the next begins; long conversations are another measure


def conversations(levels: list[int], seconds: float, pids: dict[str, int]) -> Results:
    """Conversations with Joker at the same time; each turn begins as soon as the previous one is answered."""
    from hosting.agent_client import AgentClient
    from hosting.scheduler import scheduler_client

    joker = AgentClient(scheduler_client()).get_agent("Joker")
    direct = Direct()

    def durable_turns() -> Callable[[], Any]:
        session = joker.create_session()
        return lambda: joker.run(FIRST, session=session)

    def direct_turns() -> Callable[[], Any]:
        said = [JOKER]

        def one() -> None:
            said.append(FIRST)
            said.append(direct.ask(*said))

        return one

    results = []
    for level in levels:
        with CpuTime(pids) as cpu:
            rate, times = at_once(durable_turns, level, seconds)
        direct_rate, direct_times = at_once(direct_turns, level, seconds / 2)
        name = f"{level} conversation{'s' * (level > 1)} at once"
        a_turn = cpu.a_turn(len(times))
        results += result(f"{name}: turns", "/s", [rate], [direct_rate], runs=len(times), cpu_ms_a_turn=a_turn)
        results += result(f"{name}: one turn", "ms", times, direct_times)
    return results


def at_once(begin: Callable[[], Callable[[], Any]], count: int, seconds: float) -> tuple[float, list[float]]:
    """Run conversations in parallel, each with two turns at least; returns turns per second, and each turn's time."""
    deadline = time.monotonic() + seconds

    def lead(_: int) -> list[float]:
        one, times = begin(), []
        while len(times) < 2 or time.monotonic() < deadline:
            if times and len(times) % TURNS_EACH == 0:
                one = begin()
            times.append(took(one))
        return times

    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        times = [one for each in pool.map(lead, range(count)) for one in each]
    return len(times) / (time.perf_counter() - began), times


# Growth -------------------------------------------------------------------------------------------------------------

AROUND = 9  # a turn's result is the median of this many turns up to it


def growth(turns: list[int], seconds: float, **_: Any) -> Results:
    """One conversation with messages of 200 characters: the time of its turns, and the size of what is stored.

    Turns that it has not reached after this time are left out.
    """
    from hosting.agent_client import AgentClient
    from hosting.scheduler import scheduler_client

    from durabletask.entities import EntityInstanceId

    client = scheduler_client()
    joker, direct = AgentClient(client).get_agent("Joker"), Direct()
    first = side_by_side(lambda: joker.run(long_message(1)), lambda: direct.ask(JOKER, long_message(1)), AROUND)
    results = result("turn 1 of a conversation", "ms", *first)

    session = joker.create_session()
    assert session.durable_session_id
    entity = EntityInstanceId(session.durable_session_id.entity_name, session.durable_session_id.key)
    said, times, direct_times = [JOKER], [], []
    deadline = time.monotonic() + seconds
    for number in range(1, max(turns) + 1):
        if time.monotonic() > deadline:
            break
        message = long_message(number)
        began = time.perf_counter()
        answer = joker.run(message, session=session).text
        times.append((time.perf_counter() - began) * SECOND)
        said.append(message)
        if any(turn - AROUND < number <= turn for turn in turns):
            direct_times.append(took(lambda: direct.ask(*said)))
        said.append(answer)
        if number in turns:
            if number >= AROUND:
                results += result(f"turn {number} of a conversation", "ms", times[-AROUND:], direct_times[-AROUND:])
            state = client.get_entity(entity, include_state=True)
            assert state
            results += result(f"stored after turn {number}", "kB", [len(state.get_state() or "") / 1000])
    return results


def long_message(number: int) -> str:
    """A message of 200 characters."""
    return f"This is message {number} of a long conversation. ".ljust(200, ".")


# Start, memory, recovery: each starts its processes itself ----------------------------------------------------------


def start(runs: int, sample: str) -> Results:
    """`run.py 01` when everything is installed, and a worker from its start until it is ready."""
    ours = ("ENDPOINT", "TASKHUB", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_KEY", "RUN_FROM", "PYTHONPATH")
    env = dict.fromkeys(ours, "") | {f"OFFLINE_MODEL_{name}_SECONDS": "0" for name in ("FIRST_TOKEN", "TOKEN")}
    command = [sys.executable, str(ROOT / "run.py"), "01"]

    def run_sample() -> None:
        done = subprocess.run(
            command, env={**os.environ, **env}, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(f"run.py 01 ends with exit code {done.returncode}:\n{done.stderr[-2000:]}")

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        env["STATE_DIRECTORY"] = folder
        commands = [took(run_sample) / SECOND for _ in range(runs)]
    with Stack() as stack:
        env = stack.settings(Path(sample), stack.model(0).address)
        starts = []
        for _ in range(runs):
            worker = stack.worker(Path(sample), env)
            starts.append(worker.seconds)
            stack.stop(worker.popen)
    return [*result("run.py 01, warm", "s", commands), *result("worker start to ready", "s", starts)]


def memory(count: int, sample: str) -> Results:
    """The memory of the processes, and of the scheduler for stored conversations of one turn."""
    from hosting.agent_client import AgentClient
    from hosting.scheduler import scheduler_client

    with Stack() as stack:
        env = stack.settings(Path(sample), stack.model(0).address)
        os.environ.update(env)
        processes = {
            "scheduler": stack.service("scheduler"),
            "model": stack.model(0),
            "worker": stack.worker(Path(sample), env),
        }
        held = {name: psutil.Process(process.popen.pid).memory_info for name, process in processes.items()}
        results = []
        for name, info in held.items():
            results += result(f"memory of an idle {name}", "MB", [info().rss / 1e6])
        joker = AgentClient(scheduler_client()).get_agent("Joker")
        with ThreadPoolExecutor(8) as pool:

            def store(how_many: int) -> float:
                list(pool.map(lambda _: joker.run(FIRST), range(how_many)))
                return held["scheduler"]().rss / 1e6

            before = store(count // 5)
            added = (store(count) - before) * 1000 / count
    return [*results, *result("scheduler's memory for 1,000 conversations", "MB", [added])]


def recovery(rounds: int, sample: str) -> Results:
    """SIGKILL of the worker during the second of a chain's two calls of 2 s, and a new worker half a second later."""
    from hosting.instance import start_or_resume
    from hosting.scheduler import scheduler_client
    from hosting.waiting import result_of

    seconds, calls = [], []
    with Stack() as stack:
        model = CountingModel(delay=2.0)
        env = stack.settings(Path(sample), model.address)
        os.environ.update(env)
        with scheduler_client() as client:
            for _ in range(rounds):
                worker = stack.worker(Path(sample), env)
                model.calls = 0
                instance = start_or_resume(client, CHAIN, None, "learning")
                model.wait_for_calls(2)
                time.sleep(1.0)
                worker.popen.kill()
                time.sleep(0.5)
                began = time.perf_counter()
                worker = stack.worker(Path(sample), env)
                result_of(client, instance, PATIENCE_SECONDS)
                seconds.append(time.perf_counter() - began)
                calls.append(float(model.calls))
                stack.stop(worker.popen)
    return [
        *result("worker killed: its successor's start to the result", "s", seconds),
        *result("worker killed: calls of the model", "", calls),
    ]


class CountingModel:
    """The offline model in this process, which counts its calls."""

    def __init__(self, delay: float) -> None:
        import uvicorn

        from local_services.offline_model.server import create_app
        from local_services.service import listening_socket

        app = create_app(first_token_delay=delay)
        self.calls = 0

        async def counting(scope: Any, receive: Any, send: Any) -> None:
            self.calls += 1
            await app(scope, receive, send)

        listener = listening_socket(0)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(counting, log_level="error", lifespan="off", ws="none"))
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()

    def wait_for_calls(self, count: int) -> None:
        """Wait for this number of calls. Raises Failed if they do not come."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.calls < count:
            if time.monotonic() > deadline:
                raise Failed(f"The model was asked {self.calls} times, not {count}.")
            time.sleep(0.01)


MEASURES: list[Callable[..., Results]] = [
    turn,
    chain,
    two,
    decision,
    stream,
    chains,
    conversations,
    growth,
    start,
    memory,
    recovery,
]

if __name__ == "__main__":
    measure = next(one for one in MEASURES if one.__name__ == sys.argv[1])
    try:
        found = measure(**json.loads(sys.argv[2]))
    except Failed as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(found))
