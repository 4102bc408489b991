"""Asks a durable agent from a client, and raises AgentError where the package would return an empty answer."""

import json
import time

from agent_framework import AgentResponse, AgentSession, Message
from agent_framework_durabletask import (
    DurableAgentExecutor,
    DurableAgentSession,
    DurableAgentState,
    DurableAIAgent,
    DurableAIAgentClient,
    RunRequest,
)
from durabletask.client import TaskHubGrpcClient

from .calls import waiting_at_most
from .conversation import FULL, StoredConversations, entity_of, find_answer, key_of
from .program import AgentError
from .terminal import ProgressLine, command

FIRST_PAUSE, LONGEST_PAUSE = 0.004, 0.25  # seconds between two looks
_TOOLS_ONLY = "Function invocation limit reached"  # how the agent framework ends a run that only called tools


class AgentClient(DurableAIAgentClient):
    """DurableAIAgentClient that sees an answer soon, and says why there is none. The plain class works as well.

    `run` with `options={"wait_for_response": False}` returns immediately; the `response_id` of what it returns is the
    correlation id of the answer.
    """

    def __init__(self, client: TaskHubGrpcClient, timeout: float = 120.0) -> None:
        super().__init__(client)
        self._asking = _AskingExecutor(client, timeout)

    def get_agent(self, agent_name: str) -> DurableAIAgent[AgentResponse]:
        return DurableAIAgent(self._asking, agent_name)

    def stored_conversation(self, session: DurableAgentSession) -> DurableAgentState:
        """All that was said so far; empty if the conversation has not begun."""
        state = self._asking.stored.fetch(session)
        return DurableAgentState.from_json(state) if state else DurableAgentState()


class _AskingExecutor(DurableAgentExecutor[AgentResponse]):
    """Signals the agent's entity, then looks at the stored conversation until the answer is there."""

    def __init__(self, client: TaskHubGrpcClient, timeout: float) -> None:
        self._client, self._timeout = client, timeout
        self.stored = StoredConversations(client)
        self._waiting: set[str] = set()  # correlation ids

    def run_durable_agent(
        self, agent_name: str, run_request: RunRequest, session: AgentSession | None = None
    ) -> AgentResponse:
        if not isinstance(session, DurableAgentSession):
            session = self.get_new_session(agent_name)
        request, correlation_id = run_request.to_dict(), run_request.correlation_id
        if (size := self.stored.size(session) + len(json.dumps(request))) > FULL:
            raise AgentError(
                f"The conversation is full: {size:,} of {FULL:,} bytes with this message. Start a new one."
            )
        self._client.signal_entity(entity_of(session), "run", request)
        if not run_request.wait_for_response:
            return AgentResponse(messages=[Message("system", ["accepted"])], response_id=correlation_id)
        self._waiting.add(correlation_id)
        try:
            return self._wait(agent_name, session, correlation_id)
        finally:
            self._waiting.discard(correlation_id)

    def _wait(self, agent_name: str, session: DurableAgentSession, correlation_id: str) -> AgentResponse:
        progress, deadline, pause = ProgressLine(), time.monotonic() + self._timeout, FIRST_PAUSE
        try:
            while (left := deadline - time.monotonic()) > 0:
                with waiting_at_most(left):
                    state = self.stored.latest(session)
                if answer := find_answer(state, correlation_id):
                    return require_answer(answer)
                progress.show(f"waiting for {agent_name}")
                # The more threads wait, the less often each looks: with 400, the median answer is there 25 % sooner.
                time.sleep(min(max(pause, FIRST_PAUSE * (len(self._waiting) - 1)), left))
                pause = min(pause * 1.15, LONGEST_PAUSE)
        finally:
            progress.clear()
        why = f"No answer from {agent_name} within {self._timeout:g} s. Is its worker running ({command('worker.py')})?"
        if (size := self.stored.size(session)) > FULL / 2:
            raise AgentError(f"{why} The question is lost if its answer does not fit into 1 MB ({size:,} bytes used).")
        raise AgentError(f"{why} The question is kept in {key_of(session)}, and will be answered.")


def require_answer(response: AgentResponse) -> AgentResponse:
    """The response, if it is an answer. Raises AgentError with the agent's message if it stands for a failure."""
    for content in (content for message in response.messages for content in message.contents):
        if content.type == "error":
            raise AgentError(content.message or "The agent failed without a message.")
    if response.text.startswith(_TOOLS_ONLY):
        raise AgentError("The agent called its tools again and again, and gave no answer.")
    return response
