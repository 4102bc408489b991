"""Asks a durable agent from a client, and raises AgentError where the package would return an empty answer."""

import json
import time
from typing import Any

from agent_framework import AgentResponse, Message
from agent_framework_durabletask import DurableAgentSession, DurableAIAgent, DurableAIAgentClient
from durabletask.client import TaskHubGrpcClient

from .agent_runtime import RUN, agent_that_asks, entity_of
from .calls import waiting_at_most
from .conversation import FULL, Conversation, StoredConversations, key_of
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
        self._scheduler, self._timeout = client, timeout
        self._stored = StoredConversations(client)
        self._waiting: set[str] = set()  # correlation ids

    def get_agent(self, agent_name: str) -> DurableAIAgent[AgentResponse]:
        return agent_that_asks(agent_name, self._ask)

    def stored_conversation(self, session: DurableAgentSession) -> Conversation:
        """All that was said so far; empty if the conversation has not begun."""
        return self._stored.fetch(session)

    def _ask(self, agent_name: str, session: DurableAgentSession, request: dict[str, Any]) -> AgentResponse:
        """Signal the agent's entity, then look at the stored conversation until the answer is there."""
        correlation_id = request["correlationId"]
        if (size := self._stored.size(session) + len(json.dumps(request))) > FULL:
            raise AgentError(
                f"The conversation is full: {size:,} of {FULL:,} bytes with this message. Start a new one."
            )
        self._scheduler.signal_entity(entity_of(session), RUN, request)
        if not request["wait_for_response"]:
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
                    conversation = self._stored.latest(session)
                if answer := conversation.answer(correlation_id):
                    return require_answer(answer)
                progress.show(f"waiting for {agent_name}")
                # The more threads wait, the less often each looks: with 400, the median answer is there 25 % sooner.
                time.sleep(min(max(pause, FIRST_PAUSE * (len(self._waiting) - 1)), left))
                pause = min(pause * 1.15, LONGEST_PAUSE)
        finally:
            progress.clear()
        why = f"No answer from {agent_name} within {self._timeout:g} s. Is its worker running ({command('worker.py')})?"
        if (size := self._stored.size(session)) > FULL / 2:
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
