"""What streaming through Redis costs on this machine: updates a second, and the way of one update.

    .venv/bin/python benchmarks/streaming.py

Starts a Redis, writes with sample 03's callback in this process, and reads with its `read_stream` in another.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "03_single_agent_streaming"))

from agent_framework import AgentResponseUpdate, Content  # noqa: E402
from agent_framework_durabletask import AgentCallbackContext, DurableAgentState  # noqa: E402
from redis_stream_response_handler import RedisStreamResponseHandler  # noqa: E402

UPDATES = 2000
PACED_UPDATES, PACE_SECONDS = 300, 0.01
ROUNDS = 5


def handler(url: str) -> RedisStreamResponseHandler:
    """The sample's handler; nothing is ever stored, so that readers see what the stream brings."""
    return RedisStreamResponseHandler(url, 600, lambda key: DurableAgentState(), patience=30)


def read(url: str, key: str, count: int) -> None:
    """As the process that reads: print for each update when it was written and when it came, in seconds."""
    print("reading", flush=True)
    times = []
    for chunk in handler(url).read_stream(key, correlation_id="run"):
        times += [(written, time.time()) for written in chunk.text.split()]
        if len(times) == count:
            break
    assert [written for written, _ in times] == sorted(written for written, _ in times), "out of order"
    print("\n".join(f"{written} {came}" for written, came in times), flush=True)


async def write(url: str, key: str, count: int, pause: float) -> None:
    """Write that many updates, each with the time of its writing in it."""
    callback, context = handler(url), AgentCallbackContext("TravelPlanner", "run", session_id=key)
    for _ in range(count):
        update = AgentResponseUpdate(contents=[Content.from_text(f"{time.time():.6f} ")])
        await callback.on_streaming_response_update(update, context)
        await asyncio.sleep(pause)  # even 0 lets the sending go on, as the model's own stream does
    assert callback._sending
    await callback._sending
    await callback._writer.aclose()


def measure(url: str, key: str, count: int, pause: float) -> list[tuple[float, float]]:
    """For each update when it was written and when it was read, in seconds."""
    command = [sys.executable, __file__, url, key, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        output: IO[str] = reader.stdout  # pyright: ignore[reportAssignmentType]
        assert output.readline() == "reading\n"
        time.sleep(0.2)
        asyncio.run(write(url, key, count, pause))
        return [(float(written), float(came)) for written, came in map(str.split, output)]


def main() -> None:
    """Measure, and print what came out."""
    service = [sys.executable, "-m", "local_services.redis_server", "--port", "0"]
    with subprocess.Popen(service, cwd=ROOT, stdout=subprocess.PIPE, text=True) as redis:
        output: IO[str] = redis.stdout  # pyright: ignore[reportAssignmentType]
        url = output.readline().split()[-1]
        rates, ways = [], []
        for number in range(ROUNDS):
            times = measure(url, f"burst-{number}", UPDATES, 0)
            rates.append(UPDATES / (times[-1][1] - times[0][0]))
        for written, came in measure(url, "paced", PACED_UPDATES, PACE_SECONDS):
            ways.append((came - written) * 1000)
        redis.terminate()
    ways.sort()
    print(f"{UPDATES} updates at once, written to read: {', '.join(f'{rate:,.0f}/s' for rate in sorted(rates))}")
    print(
        f"{PACED_UPDATES} updates, one every {PACE_SECONDS * 1000:g} ms, each written to read: median "
        f"{statistics.median(ways):.1f} ms, 99th of 100 {ways[len(ways) * 99 // 100]:.1f} ms"
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        read(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
