"""The reader, in a client or a web server: follows an answer while it is written.

Redis carries the pieces and decides nothing. The stored conversation alone decides whether a run has ended, how, and
with which text. So whatever happens to Redis or to a worker, a reader ends with the text that is stored.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hosting.agent_client import require_answer
from hosting.calls import waiting_at_most
from hosting.conversation import FULL
from hosting.program import AgentError
from hosting.terminal import command

import grpc
from agent_framework import AgentResponse
from agent_framework_durabletask import DurableAgentState
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis_stream import Entry, stream_key, text_of, trouble, write

STORED_BYTES = 1024 * 1024  # of a conversation
START = "0-0"  # the cursor before the first entry
FIRST_WAIT, LONGEST_WAIT = 0.01, 1.0  # seconds that one read waits; after it, a look at the stored conversation

Stored = Callable[[str], DurableAgentState]


@dataclass(frozen=True)
class StreamChunk:
    """What comes next. In silence, an empty one comes every second or so."""

    entry_id: str  # the cursor: reading from there yields what follows this chunk
    text: str = ""  # how the answer continues
    is_done: bool = False  # the run has ended, and this was all
    error: str | None = None  # why there is no answer; if is_done is false, it may still come
    restarted: bool = False  # what came before is void; the answer starts again with this chunk
    notice: str | None = None  # for a person: why it starts again, or why no pieces come


class RedisStreamResponseHandler:
    """Reads what the worker's RedisStreamCallback writes. `async with` closes the connection.

    The client needs decode_responses=True; `stored` returns the conversation of a session key, and runs in a thread;
    `patience` is how many seconds of silence end a reading.
    """

    def __init__(self, redis_client: Redis, stream_ttl: timedelta, stored: Stored, patience: float = 120.0) -> None:
        self._redis, self._ttl, self._stored, self._patience = redis_client, stream_ttl, stored, patience

    async def __aenter__(self) -> "RedisStreamResponseHandler":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._redis.aclose()

    async def announce(self, session_key: str, correlation_id: str) -> None:
        """Note in the stream that a question was asked, for those who come back before its answer begins."""
        with suppress(RedisError):  # the reading that follows says so
            await write(self._redis, self._ttl, [(session_key, Entry(run=correlation_id))])

    async def read_stream(
        self, session_key: str, cursor: str = START, correlation_id: str | None = None
    ) -> AsyncIterator[StreamChunk]:
        """Yield what follows the cursor in the answer to one question, until the run has ended or patience has.

        Without a correlation id, the question is the one that the cursor belongs to, or else the newest. Raises
        grpc.RpcError if the scheduler refuses a call, or does not answer for as long as patience lasts.
        """
        reading = await self._begin(session_key, cursor, correlation_id)
        if not reading.run:
            yield StreamChunk(cursor, is_done=True, error=reading.notice)
            return
        position, wait, silent_redis = reading.cursor, FIRST_WAIT, False
        heard = looked = time.monotonic()
        while True:
            try:
                entries, problem = await self._read(session_key, position, wait), ""
            except RedisError as error:
                entries, problem = [], trouble(self._redis, error)
                await asyncio.sleep(wait / 2)
            if problem and not silent_redis:
                notice = f"No pieces come for now, only the whole answer at its end. {problem}"
                yield StreamChunk(reading.cursor, notice=notice)
            silent_redis = bool(problem)
            for position, entry in entries:
                if chunk := reading.take(position, entry):
                    yield chunk

            now = time.monotonic()
            heard = now if entries else heard
            if not entries or reading.ended or now - looked > LONGEST_WAIT:
                looked = now
                if last := await self._look(session_key, reading, now - heard > self._patience):
                    yield last
                    return
            if entries:
                wait = FIRST_WAIT if reading.ended else LONGEST_WAIT
            else:
                if wait == LONGEST_WAIT:
                    yield StreamChunk(reading.cursor)
                wait = min(2 * wait, LONGEST_WAIT)

    async def _begin(self, session_key: str, cursor: str, run: str | None) -> "_Reading":
        """What a reader has who has shown everything up to the cursor."""
        if run and cursor == START:
            return _Reading(run)
        conversation = await self._conversation(session_key, self._patience)
        written, unknown = list[tuple[str, Entry]](), ""
        try:
            written = await self._read(session_key, START)
        except RedisError as error:
            unknown = f", or its answer is not stored yet. {trouble(self._redis, error).rstrip('.')}"
        history = conversation.data.conversation_history
        answered = [turn.correlation_id for turn in history if turn.json_type == "response" and turn.correlation_id]
        newest = [*answered, *dict.fromkeys(entry.run for _, entry in written if entry.run)][-1:]
        if set(newest) <= set(answered):  # the stream may have expired, or lack the last turns
            newest = answered[-1:]
        here = [entry.run for id, entry in written if id == cursor and entry.run]
        if not (run := run or next(iter(here + newest), None)):
            return _Reading("", notice=f"Nothing was asked in conversation {session_key}{unknown}.")
        reading = _Reading(run)
        for id, entry in written if here else []:
            reading.take(id, entry)
            if id == cursor:
                break
        if cursor != START and not reading.text and (not here or reading.gap):
            reading.notice = "What came before is no longer in the stream. The answer starts again."
        return reading

    async def _read(self, session_key: str, after: str, wait: float | None = None) -> list[tuple[str, Entry]]:
        """The entries after this one; waits that many seconds for the first. Raises RedisError."""
        block = int(1000 * wait) if wait else None
        answer: Any = await self._redis.xread({stream_key(session_key): after}, block=block)
        entries = []
        for id, fields in answer[0][1] if answer else []:
            try:
                entries.append((id, Entry.model_validate(fields)))
            except ValidationError:
                entries.append((id, Entry(run="")))  # does not belong here
        return entries

    async def _conversation(self, session_key: str, wait: float = 0.0) -> DurableAgentState:
        with waiting_at_most(wait):  # briefly while reading: what Redis has is shown even if the scheduler is away
            return await asyncio.to_thread(self._stored, session_key)

    async def _look(self, session_key: str, reading: "_Reading", silence: bool) -> StreamChunk | None:
        """The last chunk, if the stored conversation holds the answer, or if there is no point in waiting for it."""
        try:
            conversation = await self._conversation(session_key)
        except grpc.RpcError:
            if silence:
                raise
            return None
        if answer := conversation.try_get_agent_response(reading.run):
            return reading.finish(answer)
        size = len(conversation.to_json()) if silence or reading.ended else 0
        if reading.ended and size + len(json.dumps(reading.text)) > STORED_BYTES:
            problem = f"The answer is lost: the conversation has no room for it ({size:,} bytes used)."
        elif silence:
            problem = f"Nothing was heard for {self._patience:g} s. Is a worker running ({command('worker.py')})? "
            if size > FULL / 2:
                problem += f"The question is lost if its answer does not fit into 1 MB ({size:,} bytes used)."
            else:
                problem += "The question is kept, and will be answered."
        else:
            return None
        return StreamChunk(reading.cursor, error=problem)


@dataclass
class _Reading:
    """What a reader of one answer has. Each entry of the stream adds to it, and at last the stored answer."""

    run: str
    cursor: str = START
    attempt: str = ""
    replaced: set[str] = field(default_factory=set)  # attempts
    text: str = ""  # of this attempt
    gap: bool = False  # a piece of it is missing: the rest comes from the stored answer
    ended: bool = False  # the worker has the whole answer, and is storing it
    notice: str | None = None  # why what comes next starts again

    def take(self, id: str, entry: Entry) -> StreamChunk | None:
        """What the entry adds to the answer, if anything. The newest attempt counts."""
        if entry.run != self.run:
            return None
        self.cursor = id
        if not entry.attempt or entry.attempt in self.replaced:
            return None
        if entry.attempt != self.attempt:
            same_worker = entry.attempt.partition("-")[0] == self.attempt.partition("-")[0]
            self._restart("The model broke off." if same_worker else "Another worker took over.")
            self.replaced.add(self.attempt)
            self.attempt, self.gap, self.ended = entry.attempt, False, False
        self.ended = self.ended or entry.done == "true"
        self.gap = self.gap or entry.at > len(self.text)
        return self._chunk(entry.text) if entry.text and entry.at == len(self.text) and not self.gap else None

    def finish(self, response: AgentResponse) -> StreamChunk:
        """What the stored answer adds: nothing if all pieces came, the rest if some were lost, or all of it."""
        try:
            text = text_of(require_answer(response))
        except AgentError as error:
            return StreamChunk(self.cursor, is_done=True, error=str(error))
        if not text.startswith(self.text):
            self._restart("Another attempt was stored.")
        return self._chunk(text[len(self.text) :], is_done=True)

    def _restart(self, reason: str) -> None:
        if self.text:
            self.text, self.notice = "", f"{reason} The answer starts again."

    def _chunk(self, text: str, is_done: bool = False) -> StreamChunk:
        notice, self.notice = self.notice, None
        self.text += text
        return StreamChunk(self.cursor, text, is_done=is_done, restarted=notice is not None, notice=notice)
