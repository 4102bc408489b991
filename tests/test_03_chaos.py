"""Sample 03 under random kills of worker, reader and Redis: every reader ends with the text that was stored.

CHAOS_SEED repeats the choices of an earlier run; CHAOS_WAVES makes it longer.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from conftest import Sample, Start
from scripted_model import ScriptedModel
from test_03_streaming import Planner, RedisServer, chunks, has_results, redis_program, text_of

pytestmark = pytest.mark.skipif(not redis_program(), reason="needs a real redis-server")

WAVES = int(os.environ.get("CHAOS_WAVES") or 4)
RUNS = 5  # at once, in each wave
PLACES = ["Tokyo", "Lisbon", "Paris", "Seattle", "Rome", "Vienna", "Berlin", "London", "Kyoto", "Barcelona"]


def read_with_kills(planner: Planner, key: str, run: str, choices: random.Random) -> tuple[list[dict[str, Any]], int]:
    """Read an answer to its end, in a process that is killed a few times; what it got in all, and how often."""
    received: list[dict[str, Any]] = []
    kills = 0
    lives = [choices.uniform(1.0, 3.0) for _ in range(choices.randint(1, 3))]  # seconds; starting takes one of them
    for life in [*lives, None]:
        reader = planner.reader(key, received[-1]["entry_id"] if received else "0-0", run)
        if life is None:
            assert reader.wait() == 0, reader.errors
        else:
            time.sleep(life)
            kills += reader.popen.poll() is None
            reader.kill()
        received += chunks(reader)
        if received and received[-1]["is_done"]:
            break
    return received, kills


@pytest.mark.long
@pytest.mark.timeout(600)
def test_readers_end_with_the_stored_text_whatever_is_killed(
    sample: Callable[[str], Sample],
    start: Start,
    model: ScriptedModel,
    modules: Callable[[str, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 10**6)
    print(f"CHAOS_SEED={seed}")
    choices = random.Random(seed)  # noqa: S311
    model.token_delay = 0.006
    planner = Planner(sample("03"), start)
    server = RedisServer(start)
    planner.sample.settings["REDIS_CONNECTION_STRING"] = server.address
    for name, value in planner.sample.settings.items():
        monkeypatch.setenv(name, value)
    scheduler, conversation = modules("03", "hosting.scheduler"), modules("03", "hosting.conversation")
    stream, reader = modules("03", "redis_stream"), modules("03", "redis_stream_response_handler")
    agent = modules("03", "hosting.agent_client").AgentClient(scheduler.scheduler_client()).get_agent("TravelPlanner")

    async def announce(key: str, run: str) -> None:
        redis, ttl = stream.redis_client(), stream.stream_ttl()
        async with reader.RedisStreamResponseHandler(redis, ttl, planner.stored) as handler:
            await handler.announce(key, run)

    workers = [planner.sample.start_worker()]
    restarts = reader_kills = redis_restarts = 0
    for wave in range(WAVES):
        asked = []
        for place in choices.sample(PLACES, RUNS):
            key = f"wave-{wave}-{place.lower()}"
            question = f"Plan a {choices.randint(1, 5)}-day trip to {place} next week."
            if choices.random() < 0.3:
                model.break_off(choices.randint(2, 120), matches=has_results)
            options = {"wait_for_response": False}
            run = agent.run(
                question, session=conversation.session_of("TravelPlanner", key), options=options
            ).response_id
            asyncio.run(announce(key, run))
            asked.append((key, run, random.Random(choices.random())))  # noqa: S311
        with ThreadPoolExecutor(RUNS) as pool:
            readings = [pool.submit(read_with_kills, planner, key, run, own) for key, run, own in asked]
            for pause in [choices.uniform(0.2, 2.5) for _ in range(choices.randint(1, 2))]:
                time.sleep(pause)
                if choices.random() < 0.2:
                    server.process.kill()
                    server.start()
                    redis_restarts += 1
                workers[-1].kill()
                workers.append(planner.sample.start_worker())
        for (key, _, _), reading in zip(asked, readings, strict=True):
            received, kills = reading.result()
            (answer,) = planner.answers(key)
            assert text_of(received) == answer, f"CHAOS_SEED={seed} {key}"
            assert received[-1]["is_done"]
            restarts += sum(chunk["restarted"] for chunk in received)
            reader_kills += kills
    print(
        f"{WAVES * RUNS} runs. Killed: {len(workers) - 1} workers, {reader_kills} readers, Redis {redis_restarts}x; "
        f"readers saw {restarts} times that an answer starts again"
    )
    assert restarts, "nothing was tested"
    assert reader_kills, "nothing was tested"
