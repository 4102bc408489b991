"""What writer and reader agree on: where Redis is, and what a conversation's stream holds."""

import asyncio
import math
from argparse import ArgumentTypeError
from collections.abc import Coroutine, Iterable
from datetime import timedelta
from typing import Any

from hosting.program import UsageError, setting
from hosting.terminal import seconds

from agent_framework import AgentResponse
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, RedisError

STREAM_ENTRIES = 10_000  # about 1 MB; Redis drops older ones, and readers find their text in the stored answer
IO_SECONDS = 3.0  # for Redis to answer; longer than a read blocks


class Entry(BaseModel):
    """One entry of a stream: a question that was asked, a piece of its answer, or the end of the answer."""

    run: str  # the correlation id of the question
    attempt: str = ""  # WORKER-NUMBER: another worker, or a model that is asked again, begins another attempt
    at: int = 0  # characters of the attempt before this piece: shows what was lost, or sent twice
    text: str = ""
    done: str = ""  # "true" at the end


def redis_client() -> Redis:
    """The Redis that the environment names. Raises UsageError, without quoting a password."""
    url = setting("REDIS_CONNECTION_STRING", "redis://localhost:6379")
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), 3, (ConnectionError,))  # 0.7 s; a timeout is not repeated
    limits: dict[str, Any] = {"socket_timeout": IO_SECONDS, "socket_connect_timeout": IO_SECONDS}
    try:
        client = Redis.from_url(url, decode_responses=True, retry=retry, **limits)
        client.connection_pool.make_connection()  # does not connect yet, but checks the options
        return client
    except (ValueError, TypeError, RedisError):
        raise UsageError(
            "REDIS_CONNECTION_STRING is no Redis URL: use redis://HOST:6379, or rediss://:PASSWORD@HOST:6380 for TLS."
        ) from None


def stream_ttl() -> timedelta:
    """How long a stream outlives its last write. Raises UsageError."""
    minutes = setting("REDIS_STREAM_TTL_MINUTES", "10")
    try:
        return timedelta(seconds=math.ceil(60 * seconds(minutes)))
    except ArgumentTypeError:
        raise UsageError(f"REDIS_STREAM_TTL_MINUTES={minutes} is not a number of minutes, such as 10.") from None


def stream_key(session_key: str) -> str:
    """The name of a conversation's stream in Redis."""
    return f"agent-stream:{session_key}"


async def write(redis: Redis, ttl: timedelta, batch: Iterable[tuple[str, Entry]]) -> None:
    """Append entries, each to the stream of a session key, in one round trip. Raises RedisError."""
    async with redis.pipeline(transaction=False) as pipeline:
        for session_key, entry in batch:
            fields: dict[Any, Any] = entry.model_dump(exclude_defaults=True)
            pipeline.xadd(stream_key(session_key), fields, maxlen=STREAM_ENTRIES, approximate=True)
        for session_key in {session_key for session_key, _ in batch}:
            pipeline.expire(stream_key(session_key), ttl)
        await pipeline.execute()


def trouble(redis: Redis, error: Exception) -> str:
    """What is wrong with Redis, in one line without a password."""
    place = redis.connection_pool.connection_kwargs
    address = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
    return f"Redis at {address}: {(str(error) or type(error).__name__).splitlines()[0]}"


def text_of(response: AgentResponse) -> str:
    """All of the text in a response, put together as its pieces are."""
    contents = (content for message in response.messages for content in message.contents)
    return "".join(content.text or "" for content in contents if content.type == "text")


async def interruptible(reading: Coroutine[Any, Any, None]) -> None:
    """Read until the end, or until Ctrl-C, which cancels the task that `asyncio.run` starts: here, one that waits."""
    task = asyncio.create_task(reading)
    try:
        await asyncio.wait([task])
    finally:
        while not task.done():  # redis-py sends by asyncio.wait_for, which may lose a cancellation before Python 3.12
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
    await task
