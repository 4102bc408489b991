"""The writer, in the worker: passes an answer on to Redis while the model writes it."""

import asyncio
import logging
import uuid
from collections import deque
from contextvars import ContextVar
from datetime import timedelta

from agent_framework import AgentResponse, AgentResponseUpdate
from agent_framework_durabletask import AgentCallbackContext, AgentResponseCallbackProtocol
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from redis_stream import Entry, trouble, write

PENDING_ENTRIES = 20_000  # that wait while Redis is slow or unreachable; then the oldest are dropped
BATCH_ENTRIES = 500

log = logging.getLogger("sample")

# Each run of an agent is an asyncio task with its own value: an attempt of a worker that was replaced never mixes
# with the new one, even in one process.
_attempt: ContextVar[str] = ContextVar("_attempt", default="")


class RedisStreamCallback(AgentResponseCallbackProtocol):
    """Receives each piece of an answer, and only queues it: the model never waits for Redis, whatever happens there."""

    def __init__(self, redis_client: Redis, stream_ttl: timedelta) -> None:
        self._redis, self._ttl = redis_client, stream_ttl
        self._pending: deque[tuple[str, Entry]] = deque(maxlen=PENDING_ENTRIES)
        self._sending: asyncio.Task[None] | None = None
        self._problem = ""

    async def on_streaming_response_update(self, update: AgentResponseUpdate, context: AgentCallbackContext) -> None:
        """Queue a piece of an answer."""
        if update.text:  # updates about tool calls have none
            self._queue(context, text=update.text)

    async def on_agent_response(self, response: AgentResponse, context: AgentCallbackContext) -> None:
        """Queue the end of an answer, which is going to be stored."""
        self._queue(context, done="true")

    def _queue(self, context: AgentCallbackContext, **content: str) -> None:
        if not _attempt.get():
            _attempt.set(uuid.uuid4().hex[:16])
        entry = {"run": context.correlation_id, "attempt": _attempt.get(), **content}
        self._pending.append((str(context.session_id), entry))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Send what is queued, in order, until Redis has it or refuses it.

        What is lost, or sent twice because only Redis's reply was lost, readers repair with the stored answer.
        """
        batch: list[tuple[str, Entry]] = []
        while batch or self._pending:
            batch = batch or [self._pending.popleft() for _ in range(min(len(self._pending), BATCH_ENTRIES))]
            problem = ""
            try:
                await write(self._redis, self._ttl, *batch)
                batch = []
            except (RedisError, OSError) as error:
                problem, batch = trouble(self._redis, error), [] if isinstance(error, ResponseError) else batch
                await asyncio.sleep(0.5)
            if problem != self._problem:
                self._problem = problem
                log.warning("%s", f"Nothing is streamed. {problem}" if problem else "Answers are streamed again.")
