"""A conversation is an agent's name and a key; the scheduler stores what was said as the state of an entity."""

import argparse
import json
import time
from dataclasses import dataclass
from datetime import datetime
from weakref import WeakKeyDictionary

from agent_framework import AgentResponse
from agent_framework_durabletask import AgentSessionId, DurableAgentSession, DurableAgentState, DurableStateFields
from durabletask.client import TaskHubGrpcClient
from durabletask.entities import EntityInstanceId

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
class _Seen:
    """A conversation as it was when it was fetched last."""

    state: str = ""
    modified: datetime | None = None
    at: float = 0.0


class StoredConversations:
    """Looks at conversations as the scheduler stores them."""

    def __init__(self, client: TaskHubGrpcClient) -> None:
        self._client = client
        self._seen: WeakKeyDictionary[DurableAgentSession, _Seen] = WeakKeyDictionary()

    def size(self, session: DurableAgentSession) -> int:
        """How long the conversation was when it was fetched last, in characters of ASCII; 0 if never."""
        return len(self._seen.get(session, _Seen()).state)

    def latest(self, session: DurableAgentSession) -> str:
        """The conversation as JSON; a long one is not fetched again while its time stamp is still the same."""
        seen = self._seen.get(session, _Seen())
        if len(seen.state) > SHORT and time.monotonic() - seen.at < FETCH_SECONDS:
            entity = self._client.get_entity(entity_of(session), include_state=False)
            if entity is None or entity.last_modified == seen.modified:
                return seen.state  # another thread may have fetched it
        return self.fetch(session)

    def fetch(self, session: DurableAgentSession) -> str:
        """The conversation as JSON, or nothing if it has not begun."""
        entity = self._client.get_entity(entity_of(session), include_state=True)
        state = (entity.get_state() if entity else None) or ""
        self._seen[session] = _Seen(state, entity.last_modified if entity else None, time.monotonic())
        return state


def entity_of(session: DurableAgentSession) -> EntityInstanceId:
    """The entity that holds the conversation."""
    assert session.durable_session_id
    return EntityInstanceId(session.durable_session_id.entity_name, session.durable_session_id.key)


def find_answer(state: str, correlation_id: str) -> AgentResponse | None:
    """The answer to one question. Only its turn is read: the package would take its time to read every turn."""
    if correlation_id not in state:
        return None
    stored = json.loads(state)
    data = stored[DurableStateFields.DATA]
    turns = data[DurableStateFields.CONVERSATION_HISTORY]
    data[DurableStateFields.CONVERSATION_HISTORY] = [
        turn for turn in turns if turn.get(DurableStateFields.CORRELATION_ID) == correlation_id
    ]
    return DurableAgentState.from_dict(stored).try_get_agent_response(correlation_id)
