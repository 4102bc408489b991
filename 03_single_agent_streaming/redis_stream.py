"""What writer and reader agree on: where Redis is, and what a conversation's stream holds."""

from argparse import ArgumentTypeError
from datetime import timedelta
from typing import Any

from hosting.program import UsageError, setting
from hosting.terminal import seconds

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, RedisError

STREAM_ENTRIES = 10_000  # about 1 MB; Redis drops older ones, and readers find their text in the stored answer
IO_SECONDS = 3.0  # for Redis to answer; longer than a read blocks

# An entry of a stream: `run` is the correlation id of a question. Alone, it says that the question was asked. With an
# `attempt` (each execution of a run has its own), it carries a piece of the answer as `text`, or the end: done="true".
Entry = dict[str, str]


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
        return timedelta(minutes=seconds(minutes))
    except ArgumentTypeError:
        raise UsageError(f"REDIS_STREAM_TTL_MINUTES={minutes} is not a number of minutes, such as 10.") from None


def stream_key(session_key: str) -> str:
    """The name of a conversation's stream in Redis."""
    return f"agent-stream:{session_key}"


async def write(redis: Redis, ttl: timedelta, *entries: tuple[str, Entry]) -> None:
    """Append entries, each to the stream of a session key, in one round trip. Raises RedisError."""
    async with redis.pipeline(transaction=False) as pipeline:
        for session_key, entry in entries:
            pipeline.xadd(stream_key(session_key), {**entry}, maxlen=STREAM_ENTRIES, approximate=True)
        for session_key in dict(entries):
            pipeline.pexpire(stream_key(session_key), ttl)
        await pipeline.execute()


def trouble(redis: Redis, error: Exception) -> str:
    """What is wrong with Redis, in one line without a password."""
    place = redis.connection_pool.connection_kwargs
    address = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
    return f"Redis at {address}: {(str(error) or type(error).__name__).splitlines()[0]}"
