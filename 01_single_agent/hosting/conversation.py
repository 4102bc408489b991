"""A conversation is an agent's name and a key; the scheduler stores what was said as the state of an entity."""

import argparse
import json
import time
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from agent_framework import AgentResponse
from agent_framework_durabletask import AgentSessionId, DurableAgentSession
from durabletask.client import TaskHubGrpcClient

from .agent_runtime import answer_in, entity_of

FULL = (1024 - 16) * 1024  # bytes: the scheduler stores 1 MB of a conversation; the rest is left for an answer
SHORT = 16 * 1024  # bytes: such a conversation is fetched at every look
FETCH_SECONDS = 2.0  # a longer one is fetched when its time stamp has changed, and this often whatever that says


def session_of(agent_name: str, key: str) -> DurableAgentSession:
    """The conversation that this key names, whichever process began it."""
    return DurableAgentSession(durable_session_id=AgentSessionId(agent_name, key))


def key_of(session: DurableAgentSession) -> str:
    """The conversation's key."""
    assert session.durable_session_id
    return session.durable_session_id.key


def key(text: str) -> str:
    """A conversation's key, as the `type` of an argument."""
    if not text or "@" in text:
        raise argparse.ArgumentTypeError("a conversation's key is not empty and has no '@' in it")
    return text


def message(text: str) -> str:
    """What to say to an agent, as the `type` of an argument."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


@dataclass
class Conversation:
    """What was said, in the JSON that the scheduler stores. No more of it is read than is asked for."""

    state: str = ""
    modified: datetime | None = None
    fetched: float = 0.0  # when, on the monotonic clock

    @cached_property
    def turns(self) -> list[dict[str, Any]]:
        """Questions and answers: `$type` is request or response, `correlationId` is the same for the two."""
        return json.loads(self.state)["data"]["conversationHistory"] if self.state else []

    @property
    def message_count(self) -> int:
        """The number of questions and answers; 0 if the conversation has not begun."""
        return len(self.turns)

    def answer(self, correlation_id: str) -> AgentResponse | None:
        """The answer to one question, if it is there."""
        for turn in self.turns if correlation_id in self.state else ():
            if turn.get("$type") == "response" and turn.get("correlationId") == correlation_id:
                return answer_in(turn)
        return None


class StoredConversations:
    """Looks at conversations as the scheduler stores them."""

    def __init__(self, client: TaskHubGrpcClient) -> None:
        self._client = client
        self._seen: WeakKeyDictionary[DurableAgentSession, Conversation] = WeakKeyDictionary()

    def size(self, session: DurableAgentSession) -> int:
        """How long the conversation was when it was fetched last, in characters of ASCII; 0 if never."""
        return len(self._seen.get(session, Conversation()).state)

    def latest(self, session: DurableAgentSession) -> Conversation:
        """The conversation; a long one is not fetched again while its time stamp is still the same."""
        seen = self._seen.get(session, Conversation())
        if len(seen.state) > SHORT and time.monotonic() - seen.fetched < FETCH_SECONDS:
            entity = self._client.get_entity(entity_of(session), include_state=False)
            if entity is None or entity.last_modified == seen.modified:
                return seen  # another thread may have fetched it
        return self.fetch(session)

    def fetch(self, session: DurableAgentSession) -> Conversation:
        """The conversation; an empty one if it has not begun."""
        found = self._client.get_entity(entity_of(session), include_state=True)
        read = Conversation(found.get_state() or "", found.last_modified, time.monotonic()) if found else Conversation()
        self._seen[session] = read
        return read
