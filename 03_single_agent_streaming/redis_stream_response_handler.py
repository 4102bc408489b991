"""Streams answers through Redis: the worker's callback writes each piece, any number of clients read.

Redis carries the pieces and decides nothing. Whether a run has ended, how, and with which text, is known by the stored
conversation alone; so whatever becomes of Redis, a reader ends with that text.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc
import redis
import redis.asyncio
from agent_framework import AgentResponse, AgentResponseUpdate
from agent_framework_durabletask import AgentCallbackContext, AgentResponseCallbackProtocol, DurableAgentState
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from support import OUTAGE_SECONDS, AgentError, UsageError, require_answer, setting, waiting_at_most

START = "0-0"  # the cursor before the first entry

STREAM_ENTRIES = 10_000
"""Entries that a stream keeps, about 1 MB. Its time to live does not bound it: each write begins that anew, so that a
lively conversation never expires. Redis drops the oldest entries; a reader who misses them has the stored answer."""

BATCH_ENTRIES = 500  # sent or read at a time
PENDING_ENTRIES = 20_000  # that a worker holds while Redis is out of reach; then it drops the oldest
IO_SECONDS = 3.0  # for Redis to answer; longer than a read blocks
PAUSE_SECONDS = 0.5  # between attempts while it is out of reach
BLOCK_SECONDS = 1.0  # that one read waits at most; then the conversation is asked whether the run has ended

ASKED, TEXT, END = "asked", "text", "end"  # the types of entries

log = logging.getLogger("sample")


@dataclass(frozen=True)
class StreamChunk:
    """What comes next for a reader.

    Attributes:
        entry_id: the cursor: whoever has this chunk, and resumes from here, gets what follows it.
        text: what the answer goes on with.
        restarted: forget what came of this answer before; it starts again with this chunk.
        is_done: the run has ended, and this was all.
        error: why there is no answer: the agent failed (then is_done is true), or nothing was heard for too long.
        notice: for a person: why the answer starts again, or why no pieces come. The reading goes on.
    """

    entry_id: str
    text: str = ""
    restarted: bool = False
    is_done: bool = False
    error: str | None = None
    notice: str | None = None


@dataclass(frozen=True)
class _Entry:
    """One entry of a stream."""

    id: str
    type: str
    run: str  # the correlation id of the question
    attempt: str = ""  # to answer it: a worker that takes over, or a model that is asked again, makes a new one
    at: int = 0  # characters of this attempt that came before: tells a reader of a loss or a repetition
    text: str = ""

    def fields(self) -> dict[Any, Any]:
        """The entry as Redis stores it."""
        return {"type": self.type, "run": self.run, "attempt": self.attempt, "at": self.at, "text": self.text}


@dataclass
class _Attempt:
    """An answer under way in this worker."""

    run: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    text: str = ""


# Each run of an agent is an asyncio task, and what this variable holds is that task's own. So two runs never mix, not
# even two of the same question, and nothing is left over from a run that failed, of which the callback is not told.
_attempt: ContextVar[_Attempt | None] = ContextVar("attempt", default=None)


def stream_handler(
    conversation: Callable[[str], DurableAgentState] | None = None, patience: float = 120.0
) -> RedisStreamResponseHandler:
    """The handler for the Redis that the environment names. Raises UsageError if a setting is wrong."""
    url = setting("REDIS_CONNECTION_STRING", "redis://localhost:6379")
    minutes = setting("REDIS_STREAM_TTL_MINUTES", "10")
    try:
        redis.ConnectionPool.from_url(url).make_connection()
    except (ValueError, TypeError, redis.RedisError):  # whose words may quote a password
        raise UsageError(
            "REDIS_CONNECTION_STRING is no Redis URL: use redis://HOST:6379, or rediss://:PASSWORD@HOST:6380 for TLS."
        ) from None
    try:
        ttl_seconds = math.ceil(float(minutes) * 60)
    except (ValueError, OverflowError):
        ttl_seconds = 0
    if not 0 < ttl_seconds < 2**31:
        raise UsageError(f"REDIS_STREAM_TTL_MINUTES={minutes} is not a time: use a number of minutes, such as 10.")
    return RedisStreamResponseHandler(url, ttl_seconds, conversation, patience)


class RedisStreamResponseHandler(AgentResponseCallbackProtocol):
    """Writes the answers of a worker's agents to Redis Streams, one for each conversation; and reads them.

    Args:
        url: where Redis is.
        ttl_seconds: how long a stream outlives its last write.
        conversation: gives the stored conversation for a session's key; reading needs it.
        patience: seconds in which a reader must hear something before it gives up.
    """

    def __init__(
        self,
        url: str,
        ttl_seconds: int,
        conversation: Callable[[str], DurableAgentState] | None = None,
        patience: float = 120.0,
    ) -> None:
        # What is out of reach is tried again in the loops below; Redis's own retries would hold them up for seconds.
        limits: dict[str, Any] = {"socket_timeout": IO_SECONDS, "socket_connect_timeout": IO_SECONDS}
        self._writer = redis.asyncio.Redis.from_url(url, retry=AsyncRetry(NoBackoff(), 0), **limits)
        self._reader: Any = redis.Redis.from_url(
            url, decode_responses=True, retry=Retry(NoBackoff(), 1, (redis.ConnectionError,)), **limits
        )
        place = self._reader.connection_pool.connection_kwargs  # the URL may hold a password, and is never shown
        self._address = place.get("path") or f"{place.get('host', 'localhost')}:{place.get('port', 6379)}"
        self._ttl_seconds = ttl_seconds
        self._conversation = conversation
        self._patience = patience
        self._pending: deque[tuple[str, _Entry]] = deque(maxlen=PENDING_ENTRIES)
        self._sending: asyncio.Task[None] | None = None
        self._trouble = ""

    # Write side: the worker's callback ---------------------------------------------------------------------------

    async def on_streaming_response_update(self, update: AgentResponseUpdate, context: AgentCallbackContext) -> None:
        """Pass on a piece of an answer. It only queues: neither a slow nor a broken Redis holds the model up."""
        attempt = _attempt.get()
        if attempt is None or attempt.run != context.correlation_id:
            attempt = self._begin_attempt(context)
        self._write(attempt, context, update.text)

    async def on_agent_response(self, response: AgentResponse, context: AgentCallbackContext) -> None:
        """Tell the readers that the answer is whole, and about to be stored."""
        attempt, text = _attempt.get(), text_of(response)
        if attempt is None or attempt.run != context.correlation_id or attempt.text != text:
            # The model's stream broke off, so the runtime has asked again without streaming: here is all of it.
            attempt = self._begin_attempt(context)
            self._write(attempt, context, text)
        self._queue(context, _Entry("", END, attempt.run, attempt.id, len(attempt.text)))

    def _begin_attempt(self, context: AgentCallbackContext) -> _Attempt:
        attempt = _Attempt(context.correlation_id)
        _attempt.set(attempt)
        return attempt

    def _write(self, attempt: _Attempt, context: AgentCallbackContext, text: str) -> None:
        if text:  # updates about tool calls have none
            self._queue(context, _Entry("", TEXT, attempt.run, attempt.id, len(attempt.text), text))
            attempt.text += text

    def _queue(self, context: AgentCallbackContext, entry: _Entry) -> None:
        assert context.session_id is not None
        self._pending.append((stream_key(context.session_id), entry))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Send what is queued, in order, many entries in one round trip, until nothing is left."""
        while self._pending:
            batch = [self._pending.popleft() for _ in range(min(len(self._pending), BATCH_ENTRIES))]
            while not await self._sent(batch):
                pass  # again: if only Redis's answer was lost, readers know the entries by `at`, and skip them

    async def _sent(self, batch: list[tuple[str, _Entry]]) -> bool:
        """Whether Redis could be reached; if not, after a pause.

        What it then refuses is dropped: a reader finds it in the stored answer.
        """
        try:
            async with self._writer.pipeline(transaction=False) as pipeline:
                for key, entry in batch:
                    pipeline.xadd(key, entry.fields(), maxlen=STREAM_ENTRIES, approximate=True)
                for key in dict.fromkeys(key for key, _ in batch):
                    pipeline.expire(key, self._ttl_seconds)
                results = await pipeline.execute(raise_on_error=False)
            refusals = [result for result in results if isinstance(result, Exception)]
            for refusal in refusals:
                if isinstance(refusal, redis.ConnectionError):  # it is starting up, or wants a password
                    raise refusal
        except (redis.RedisError, OSError) as error:
            self._complain(f"is out of reach, so nothing is streamed: {one_line(error)}")
            await asyncio.sleep(PAUSE_SECONDS)
            return False
        self._complain(f"refuses what is streamed: {one_line(refusals[0])}" if refusals else "")
        return True

    def _complain(self, trouble: str) -> None:
        """Log the trouble with Redis, once for each, and its end."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.warning("Redis at %s %s.", self._address, trouble or "takes what is streamed again")

    # Read side: a client --------------------------------------------------------------------------------------------

    def announce(self, session_key: str, correlation_id: str) -> None:
        """Note that a question was asked, so that whoever resumes without its correlation id waits for its answer."""
        key = stream_key(session_key)
        try:
            self._reader.xadd(key, _Entry("", ASKED, correlation_id).fields(), maxlen=STREAM_ENTRIES)
            self._reader.expire(key, self._ttl_seconds)
        except redis.RedisError:
            pass  # the reading that follows tells of it

    def read_stream(
        self, session_key: str, cursor: str = START, correlation_id: str | None = None
    ) -> Iterator[StreamChunk]:
        """Give an answer piece by piece until its run has ended, or nothing was heard for as long as patience lasts.

        Args:
            session_key: of the conversation.
            cursor: the `entry_id` of the last chunk that the caller has; only what follows it is given.
            correlation_id: whose answer to give. Without it: the one that the cursor is in (the next one, if it is at
                its end), or from the start the newest.

        Raises grpc.RpcError if the scheduler refuses to be asked, or is unreachable for longer than OUTAGE_SECONDS.
        """
        reading = self._begin_reading(session_key, cursor, correlation_id)
        stored: AgentResponse | None = None
        position = reading.cursor
        reachable, wait = True, 0.01
        heard = asked = contact = time.monotonic()
        while True:
            try:
                entries = self._read(session_key, position, wait if stored is None else 0)
                reachable = True
            except redis.RedisError as error:
                entries = []
                if reachable:
                    reachable = False
                    yield reading.notice(
                        f"No pieces come for now, only the whole answer at the end: Redis at {self._address} "
                        f"is out of reach. {one_line(error)}."
                    )
                if stored is None:
                    time.sleep(min(wait, PAUSE_SECONDS))
            for entry in entries:
                position = entry.id
                if chunk := reading.take(entry):
                    yield chunk

            now = time.monotonic()
            if stored is not None and not any(entry.run == reading.run for entry in entries):
                yield reading.finish(stored)
                return
            if stored is None and (not entries or reading.ended or now - asked > BLOCK_SECONDS):
                asked = now
                try:
                    with waiting_at_most(0):  # what Redis has is printed also while the scheduler is unreachable
                        stored, contact = self._stored_answer(session_key, reading), now
                except grpc.RpcError:
                    if now - contact > OUTAGE_SECONDS:
                        raise
            if entries:
                heard, wait = now, 0.01 if reading.ended else BLOCK_SECONDS
            else:
                wait = min(2 * wait, BLOCK_SECONDS)
            if stored is None and now - heard > self._patience:
                yield reading.give_up(
                    f"Nothing was heard of the answer for {self._patience:g} s. Is a worker running "
                    "(python worker.py)? The question is kept, and answered when one is."
                )
                return

    def _read(self, session_key: str, after: str, wait: float) -> list[_Entry]:
        """The next entries; waits that many seconds for the first. Raises redis.RedisError."""
        block = int(wait * 1000) or None  # to Redis, 0 is for ever
        answer = self._reader.xread({stream_key(session_key): after}, count=BATCH_ENTRIES, block=block)
        return _entries(answer[0][1] if answer else [])

    def _begin_reading(self, session_key: str, cursor: str, run: str | None) -> _Reading:
        """Where a reader is who has read up to the cursor."""
        if cursor == START and run is not None:
            return _Reading(run)
        try:
            written = _entries(self._reader.xrange(stream_key(session_key)))
        except redis.RedisError:
            written = []
        answered = _answered(self._stored(session_key))
        place = next((index for index, entry in enumerate(written) if entry.id == cursor), None)
        if place is not None:
            last = written[place]
            if run is None and last.type == END and last.run in answered:
                return _Reading(None, cursor, known={*answered[: answered.index(last.run) + 1]})
            reading = _Reading(run or last.run)
            for entry in written[: place + 1]:
                reading.take(entry)
            return reading.resumed(cursor)
        # There is no cursor, or its place is gone: dropped, expired, or lost with a Redis that restarted.
        newest = next(reversed(dict.fromkeys(entry.run for entry in written)), None)
        if newest is None or newest in answered:
            newest = answered[-1] if answered else None
        reading = _Reading(run or newest)
        if cursor != START:
            reading.void = "The place to resume from is no longer in the stream."
        return reading

    def _stored(self, session_key: str) -> DurableAgentState:
        assert self._conversation, "reading needs the stored conversation"
        return self._conversation(session_key)

    def _stored_answer(self, session_key: str, reading: _Reading) -> AgentResponse | None:
        """The answer as the conversation has it, once the run has ended."""
        conversation = self._stored(session_key)
        if reading.run is None:
            reading.run = next((run for run in _answered(conversation) if run not in reading.known), None)
        return conversation.try_get_agent_response(reading.run) if reading.run else None


@dataclass
class _Reading:
    """What a reader of one answer has so far; each entry of the stream, and at last the stored answer, adds to it."""

    run: str | None  # None: the next one that is not known
    cursor: str = START
    known: set[str] = field(default_factory=set)
    attempt: str = ""
    past: set[str] = field(default_factory=set)
    text: str = ""
    lost: bool = False  # a piece of this attempt is missing: the rest will come from the stored answer
    void: str | None = None  # why what the reader has shown is not the beginning of what comes next
    ended: bool = False  # the worker has the whole answer, and is storing it

    def take(self, entry: _Entry) -> StreamChunk | None:
        """What the entry adds to the answer, if anything."""
        if self.run is None and entry.run and entry.run not in self.known:
            self.run = entry.run
        if entry.run != self.run:
            return None
        self.cursor = entry.id
        if entry.type == ASKED or entry.attempt in self.past:
            return None
        if entry.attempt != self.attempt:
            self._begin(entry)
        if entry.type == END:
            self.ended = True
        self.lost = self.lost or entry.at > len(self.text)
        if self.lost or entry.at < len(self.text) or not entry.text:
            return None
        return self._chunk(entry.text)

    def _begin(self, entry: _Entry) -> None:
        """The newest attempt wins: what came before is void, and what may still come of it is ignored."""
        self.past.add(self.attempt)
        self.attempt, self.ended, self.lost = entry.attempt, False, entry.at > 0
        if self.text and not self.lost:
            self.text, self.void = "", "The worker was replaced, or the model broke off."

    def resumed(self, cursor: str) -> _Reading:
        """The same, in the hands of a reader who has shown all of it, and read up to the cursor."""
        self.cursor = cursor
        self.void = "The beginning of the answer is no longer in the stream." if self.lost and not self.text else None
        return self

    def finish(self, response: AgentResponse) -> StreamChunk:
        """What the stored answer adds: nothing if all pieces came, the rest if some were lost, or all of it."""
        try:
            text = text_of(require_answer(response))
        except AgentError as error:
            return StreamChunk(self.cursor, is_done=True, error=str(error))
        if not text.startswith(self.text):
            self.text, self.void = "", "The answer that was stored is another."
        return self._chunk(text[len(self.text) :], is_done=True)

    def notice(self, text: str) -> StreamChunk:
        """A word to the person who reads."""
        return StreamChunk(self.cursor, notice=text)

    def give_up(self, why: str) -> StreamChunk:
        """The end of the reading, and not of the run."""
        return StreamChunk(self.cursor, error=why)

    def _chunk(self, text: str, is_done: bool = False) -> StreamChunk:
        reason, self.void = self.void, None
        self.text += text
        return StreamChunk(
            self.cursor,
            text,
            restarted=reason is not None,
            is_done=is_done,
            notice=f"{reason} The answer starts again." if reason else None,
        )


def stream_key(session_key: str) -> str:
    """The name of a conversation's stream in Redis."""
    return f"agent-stream:{session_key}"


def text_of(response: AgentResponse) -> str:
    """All of the text in a response, put together as its pieces are."""
    return "".join(
        content.text or "" for message in response.messages for content in message.contents if content.type == "text"
    )


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _entries(written: list[tuple[str, dict[str, str]]]) -> list[_Entry]:
    entries = []
    for id, fields in written:
        at, text = fields.get("at", ""), fields.get("text", "")
        attempt = fields.get("attempt", "")
        entries.append(
            _Entry(id, fields.get("type", ""), fields.get("run", ""), attempt, int(at) if at.isdecimal() else 0, text)
        )
    return entries


def _answered(conversation: DurableAgentState) -> list[str]:
    """The correlation ids of the runs that have ended, oldest first."""
    history = conversation.data.conversation_history
    return [entry.correlation_id for entry in history if entry.json_type == "response" and entry.correlation_id]
