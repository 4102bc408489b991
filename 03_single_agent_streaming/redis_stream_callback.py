"""The writer, in the worker: passes an answer on to Redis while the model writes it."""

import asyncio
import logging
import uuid
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta

from agent_framework import AgentResponse, AgentResponseUpdate
from agent_framework_durabletask import AgentCallbackContext, AgentResponseCallbackProtocol
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from redis_stream import Entry, text_of, trouble, write

PENDING_ENTRIES = 20_000  # that wait while Redis is slow or unreachable; then the oldest are dropped
BATCH_ENTRIES = 500
WORKER = uuid.uuid4().hex[:8]

log = logging.getLogger("sample")


@dataclass
class _Attempt:
    """An answer that this worker is writing."""

    run: str
    id: str = field(default_factory=lambda: f"{WORKER}-{uuid.uuid4().hex[:8]}")
    text: str = ""


# Each run of an agent is an asyncio task with its own value of this variable. So two runs never mix, even if both
# answer the same question, and a run that failed leaves nothing behind (the callback does not hear of failures).
_attempt: ContextVar[_Attempt | None] = ContextVar("_attempt", default=None)


def _attempt_at(context: AgentCallbackContext, another: bool = False) -> _Attempt:
    attempt = _attempt.get()
    if another or attempt is None or attempt.run != context.correlation_id:
        attempt = _Attempt(context.correlation_id)
        _attempt.set(attempt)
    return attempt


class RedisStreamCallback(AgentResponseCallbackProtocol):
    """Receives each piece of an answer, and only queues it: the model never waits for Redis, whatever happens there."""

    def __init__(self, redis_client: Redis, stream_ttl: timedelta) -> None:
        self._redis, self._ttl = redis_client, stream_ttl
        self._pending: deque[tuple[str, Entry]] = deque(maxlen=PENDING_ENTRIES)
        self._sending: asyncio.Task[None] | None = None
        self._trouble = ""

    async def on_streaming_response_update(self, update: AgentResponseUpdate, context: AgentCallbackContext) -> None:
        """Queue a piece of an answer."""
        if update.text:  # updates about tool calls have none
            self._queue(_attempt_at(context), context, text=update.text)

    async def on_agent_response(self, response: AgentResponse, context: AgentCallbackContext) -> None:
        """Queue the end of an answer, which is going to be stored."""
        attempt, text = _attempt_at(context), text_of(response)
        if attempt.text != text:
            # The model's stream broke off, and the runtime has asked again without streaming: here is all of it.
            attempt = _attempt_at(context, another=True)
            self._queue(attempt, context, text=text)
        self._queue(attempt, context, done="true")

    def _queue(self, attempt: _Attempt, context: AgentCallbackContext, text: str = "", done: str = "") -> None:
        assert context.session_id is not None
        entry = Entry(run=attempt.run, attempt=attempt.id, at=len(attempt.text), text=text, done=done)
        attempt.text += text
        self._pending.append((context.session_id, entry))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Send what is queued, in order. A batch may arrive twice, if only Redis's reply was lost."""
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(len(self._pending), BATCH_ENTRIES))]
            while not await self._sent(batch):
                pass

    async def _sent(self, batch: list[tuple[str, Entry]]) -> bool:
        """Whether Redis has taken the batch, or refused it: then its text comes from the stored answer."""
        trouble_now, sent = "", True
        try:
            await write(self._redis, self._ttl, batch)
        except (RedisError, OSError) as error:
            trouble_now, sent = trouble(self._redis, error), isinstance(error, ResponseError)
            await asyncio.sleep(0.5)
        if trouble_now != self._trouble:
            self._trouble = trouble_now
            log.warning("%s", f"Nothing is streamed. {trouble_now}" if trouble_now else "Answers are streamed again.")
        return sent
