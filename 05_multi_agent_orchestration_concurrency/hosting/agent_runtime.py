"""All that uses inner parts of the agent runtime, agent-framework-durabletask: no other file imports them.

A release that moves or renames them changes this file alone. It is the same in every folder.
"""

from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import Any, TypeAlias

from agent_framework import AgentResponse, AgentSession
from agent_framework_durabletask import (
    DurableAgentExecutor,
    DurableAgentSession,
    DurableAgentStateResponse,
    DurableAIAgent,
    RunRequest,
    _durable_agent_state,
)
from agent_framework_durabletask import run_agent_coroutine as run_agent_coroutine  # for 01's long_conversation.py
from durabletask.entities import EntityInstanceId

RUN, DELETE = "run", "delete"  # operations of the entity that holds a conversation


def entity_of(session: AgentSession) -> EntityInstanceId:
    """The entity that holds the conversation."""
    durable: Any = session
    return EntityInstanceId(durable.durable_session_id.entity_name, durable.durable_session_id.key)


def answer_in(turn: dict[str, Any]) -> AgentResponse:
    """The answer in a turn of type response, as the entity stores it (JSON)."""
    return DurableAgentStateResponse.to_run_response(DurableAgentStateResponse.from_dict(turn))


# Sends a request (JSON) to the agent with this name, in this conversation.
Ask: TypeAlias = Callable[[str, DurableAgentSession, dict[str, Any]], AgentResponse]


class _Executor(DurableAgentExecutor[AgentResponse]):
    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def run_durable_agent(
        self, agent_name: str, run_request: RunRequest, session: AgentSession | None = None
    ) -> AgentResponse:
        if not isinstance(session, DurableAgentSession):
            session = self.get_new_session(agent_name)
        return self._ask(agent_name, session, run_request.to_dict())


def agent_that_asks(agent_name: str, ask: Ask) -> DurableAIAgent[AgentResponse]:
    """An agent whose `run` calls this function, instead of the runtime's client."""
    return DurableAIAgent(_Executor(ask), agent_name)


def before_each_attempt(worker: Any, begin: Callable[[EntityInstanceId, str], object]) -> None:
    """Have the agents of this worker call `begin` in the context of each attempt at a turn, with conversation and turn.

    A turn whose stream broke off has a second attempt. Agents must be added after this.
    """
    add_entity = worker.add_entity

    def add_agent_entity(entity: Any, name: str | None = None) -> str:
        def run(self: Any, request: dict[str, Any]) -> Any:
            agent, turn = self._agent_entity.agent, (self.entity_context.entity_id, request["correlationId"])

            def attempt(**options: Any) -> Any:
                begin(*turn)
                return agent.run(**options)

            self._agent_entity.agent = SimpleNamespace(name=agent.name, run=attempt)
            return entity.run(self, request)

        return add_entity(type(entity.__name__, (entity,), {"run": run}), name)

    worker.add_entity = add_agent_entity


def notice(text: str, correlation_id: str, orchestration_id: str, time: datetime) -> dict[str, Any]:
    """The input of the operation RUN for a message that no user wrote: the agent may answer, and call no tools."""
    no_tools: dict[str, Any] = {"role": "system", "wait_for_response": False, "options": {"tool_choice": "none"}}
    return RunRequest(text, correlation_id, created_at=time, orchestration_id=orchestration_id, **no_tools).to_dict()


_inner: Any = _durable_agent_state
_any_form = _inner.date_parser.parse


def read_dates_quickly() -> None:
    """From now on, in this process: reading dates in any form takes a third of the time of a 200th turn otherwise."""

    def parse(text: str) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except ValueError:  # such as the Z for UTC, before Python 3.11
            return _any_form(text)

    _inner.date_parser = SimpleNamespace(parse=parse)
