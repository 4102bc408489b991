"""The reader, in a client or a web server: follows an answer while it is written.

Redis carries the pieces and decides nothing. The stored conversation alone decides whether a run has ended, how, and
with which text. So whatever happens to Redis or to a worker, a reader ends with the text that is stored.
"""

import asyncio
import json
import re
import time
from argparse import ArgumentTypeError
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hosting.agent_client import require_answer
from hosting.calls import waiting_at_most
from hosting.conversation import Conversation
from hosting.program import AgentError
from hosting.terminal import command

import grpc
from agent_framework import AgentResponse
from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis_stream import Entry, stream_key, trouble, write

STORED_BYTES = 1024 * 1024  # of a conversation
START = "0-0"  # the cursor before the first entry
FIRST_WAIT, LONGEST_WAIT = 0.01, 1.0  # seconds that one read waits; after it, a look at the stored conversation


def cursor(text: str) -> str:
    """The id of a chunk, as the `type` of an argument."""
    if not re.fullmatch(r"\d{1,20}-\d{1,20}", text, re.ASCII):
        raise ArgumentTypeError("it takes the id of a chunk, such as 1732300000000-0; Ctrl-C prints one")
    return text


@dataclass(frozen=True)
class StreamChunk:
    """What comes next. In silence, an empty one comes every second or so."""

    entry_id: str  # the cursor: reading from there yields what follows this chunk
    text: str = ""  # how the answer continues
    is_done: bool = False  # the run has ended, and this was all
    error: str | None = None  # why there is no answer; if is_done is false, it may still come
    restarted: bool = False  # what came before is void; the answer starts again with this chunk
    notice: str | None = None  # for a person: why it starts again, or why no pieces come


@dataclass
class RedisStreamResponseHandler:
    """Reads what the worker's RedisStreamCallback writes. `async with` closes the connection."""

    redis_client: Redis  # with decode_responses=True
    stream_ttl: timedelta
    stored: Callable[[str], Conversation]  # the conversation of a session key; called in a thread
    patience: float = 120.0  # seconds of silence that end a reading

    async def __aenter__(self) -> "RedisStreamResponseHandler":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.redis_client.aclose()

    async def announce(self, session_key: str, correlation_id: str) -> None:
        """Note in the stream that a question was asked, for those who come back before its answer begins."""
        with suppress(RedisError):  # the reading that follows says so
            await write(self.redis_client, self.stream_ttl, (session_key, {"run": correlation_id}))

    async def read_stream(
        self, session_key: str, cursor: str = START, correlation_id: str | None = None
    ) -> AsyncIterator[StreamChunk]:
        """Yield what follows the cursor in the answer to one question, until the run has ended or patience has.

        Without a correlation id, the question is the one that the cursor belongs to, or else the newest. Raises
        AgentError if nothing was asked, and grpc.RpcError if the scheduler refuses a call, or stays unreachable.
        """
        answer = await self._begin(session_key, cursor, correlation_id)
        if cursor != START and answer.cursor == START:
            notice = "What came before is no longer in the stream. The answer starts again."
            yield StreamChunk(START, restarted=True, notice=notice)
        position, wait, away, heard = answer.cursor, FIRST_WAIT, False, time.monotonic()
        while True:
            entries, problem = await self._read(session_key, position, wait)
            if problem and not away:
                notice = f"No pieces come for now, only the whole answer at its end. {problem}"
                yield StreamChunk(answer.cursor, notice=notice)
            away, heard = bool(problem), time.monotonic() if entries else heard
            before = answer.cursor
            for entry_id, entry in entries.items():
                if chunk := answer.add(entry_id, entry):
                    yield chunk
            if (answer.ended or answer.cursor == before) and (last := await self._look(session_key, answer, heard)):
                yield last
                return
            if entries:
                position, wait = list(entries)[-1], FIRST_WAIT if answer.ended else LONGEST_WAIT
            elif (wait := min(2 * wait, LONGEST_WAIT)) == LONGEST_WAIT:
                yield StreamChunk(answer.cursor)

    async def _begin(self, session_key: str, cursor: str, run: str | None) -> "_Answer":
        """What a reader has of the answer who has seen the stream up to the cursor; nothing if that place is gone."""
        if run and cursor == START:
            return _Answer(run)
        written, problem = await self._read(session_key, START)
        run = run or written.get(cursor, {}).get("run") or await self._newest(session_key, written)
        if not run:
            unknown = f", or its answer is not stored yet. {problem}" if problem else "."
            raise AgentError(f"Nothing was asked in conversation {session_key}{unknown}")
        answer = _Answer(run)
        for entry_id, entry in written.items() if cursor in written else ():
            answer.add(entry_id, entry)
            if entry_id == cursor:
                break
        return answer

    async def _newest(self, session_key: str, written: dict[str, Entry]) -> str | None:
        """The newest question: the last one in the stream, unless the conversation has its answer and later ones."""
        turns = (await asyncio.to_thread(self.stored, session_key)).turns
        answered = [turn.get("correlationId") for turn in turns if turn.get("$type") == "response"]
        asked = [*dict.fromkeys(entry["run"] for entry in written.values() if "run" in entry)]
        return asked[-1] if asked and asked[-1] not in answered else (answered or [None])[-1]

    async def _read(self, session_key: str, after: str, wait: float = 0.0) -> tuple[dict[str, Entry], str]:
        """The entries after this one, by id, and what is wrong with Redis. Waits that many seconds for the first."""
        xread: Any = self.redis_client.xread({stream_key(session_key): after}, block=int(1000 * wait) or None)
        reading = asyncio.ensure_future(xread)
        try:
            await asyncio.wait([reading])  # not `await reading`: redis-py may lose a Ctrl-C before Python 3.12
            return dict(entry for _, entries in reading.result() for entry in entries), ""
        except RedisError as error:
            await asyncio.sleep(wait)
            return {}, trouble(self.redis_client, error)
        finally:
            reading.cancel()

    async def _look(self, session_key: str, answer: "_Answer", heard: float) -> StreamChunk | None:
        """The last chunk, if the stored conversation holds the answer, or if there is no point in waiting for it."""
        try:
            with waiting_at_most(0):  # what Redis has is shown even if the scheduler is away
                conversation = await asyncio.to_thread(self.stored, session_key)
        except grpc.RpcError:
            if time.monotonic() - heard > self.patience:
                raise
            return None
        if response := conversation.answer(answer.run):
            return answer.finish(response)
        error = None
        if answer.ended and len(conversation.state) + len(json.dumps(answer.text)) > STORED_BYTES:
            error = "The answer is lost: it does not fit into the conversation, which holds 1 MB."
        elif time.monotonic() - heard > self.patience:
            error = f"Nothing was heard for {self.patience:g} s. Is a worker running ({command('worker.py')})?"
        return StreamChunk(answer.cursor, error=error) if error else None


@dataclass
class _Answer:
    """What a reader has of an answer. Each entry of the stream adds to it, and at last the stored answer."""

    run: str
    cursor: str = START  # the last entry of this run
    attempts: list[str] = field(default_factory=lambda: [""])
    text: str = ""  # of the newest attempt
    ended: bool = False  # the worker has the whole answer, and is storing it

    def add(self, entry_id: str, entry: Entry) -> StreamChunk | None:
        """What the entry adds to the answer, if anything. The newest attempt wins."""
        if entry.get("run") != self.run:
            return None
        self.cursor, attempt, reason = entry_id, entry.get("attempt", ""), ""
        if attempt not in self.attempts:
            self.attempts.append(attempt)
            reason = "Another worker took over."
        if attempt != self.attempts[-1]:
            return None
        self.ended = "done" in entry
        chunk = self._chunk(entry.get("text", ""), reason)
        return chunk if chunk.text or chunk.restarted else None

    def finish(self, response: AgentResponse) -> StreamChunk:
        """What the stored answer adds: the rest; or all of it, which repairs whatever was lost or doubled."""
        try:
            contents = [one for message in require_answer(response).messages for one in message.contents]
        except AgentError as error:
            return StreamChunk(self.cursor, is_done=True, error=str(error))
        text = "".join(content.text or "" for content in contents if content.type == "text")
        if text.startswith(self.text):
            return self._chunk(text[len(self.text) :], is_done=True)
        return self._chunk(text, "The stored answer differs.", is_done=True)

    def _chunk(self, text: str, reason: str = "", is_done: bool = False) -> StreamChunk:
        """The answer continues with this text, or starts again with it if there is a reason."""
        restarted = bool(reason and self.text)
        self.text = text if restarted else self.text + text
        notice = f"{reason} The answer starts again." if restarted else None
        return StreamChunk(self.cursor, text, is_done=is_done, restarted=restarted, notice=notice)
