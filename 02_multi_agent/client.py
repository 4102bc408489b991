"""Asks RouterAgent who knows, and then that expert. Under one key, each agent has its own conversation."""

import argparse
import sys
from uuid import uuid4

from hosting.agent_client import AgentClient
from hosting.conversation import key, message, session_of
from hosting.program import AgentError, run
from hosting.scheduler import scheduler_client
from hosting.terminal import command, printable, seconds

from agent_framework_durabletask import DurableAgentSession
from models import Routing
from pydantic import ValidationError

AGENTS = ["PhysicistAgent", "ChemistAgent", "RouterAgent"]
DEMO = [
    "Why is the sky blue?",
    "What makes an acid an acid?",
    "Please explain that more simply.",  # to the same expert, in the same conversation
    "What is a black hole?",  # back to the first one, which still knows its own conversation
    "Who wrote Hamlet?",
]


class Conversations:
    """With each of these agents, the conversation that has this key."""

    def __init__(self, agents: AgentClient, names: list[str], key: str) -> None:
        self._agents = agents
        self._sessions: dict[str, DurableAgentSession] = {name: session_of(name, key) for name in names}

    def ask(self, agent: str, question: str) -> str:
        """The agent's answer. Raises AgentError if there is none."""
        return self._agents.get_agent(agent).run(question, session=self._sessions[agent]).text

    def message_count(self) -> int:
        """How many messages are stored, in all of them."""
        return sum(self._agents.stored_conversation(session).message_count for session in self._sessions.values())


def main() -> None:
    """Ask what the command line says, of the agent that it names or that the router chooses."""
    arguments = parse_arguments()
    shared_key = arguments.session or uuid4().hex
    names = [arguments.agent] if arguments.agent else AGENTS
    conversations = Conversations(AgentClient(scheduler_client(), arguments.timeout), names, shared_key)
    if arguments.session and not conversations.message_count():
        print(f"(Conversation {shared_key} of {', '.join(names)} is not known here: it begins now.)", file=sys.stderr)

    print(f"Conversation {shared_key}", flush=True)  # first: with it you can come back, whatever happens
    try:
        for question in [arguments.question] if arguments.question else DEMO:
            print(f"You: {printable(question)}", flush=True)
            agent = arguments.agent or choose_expert(conversations, question)
            if agent:
                print(f"{agent}: {printable(conversations.ask(agent, question))}\n", flush=True)
            else:
                print("No expert for this: it is neither physics nor chemistry.\n", flush=True)
    except KeyboardInterrupt:
        print()  # after the terminal's ^C
        raise
    finally:
        asked = f" --agent {arguments.agent}" if arguments.agent else ""
        print(
            f'To continue:\n  {command()}{asked} --session {shared_key} "Please explain that more simply."', flush=True
        )


def choose_expert(conversations: Conversations, question: str) -> str | None:
    """The expert that RouterAgent picks, None if it knows of none. Raises AgentError if its answer is no choice."""
    answer = conversations.ask("RouterAgent", question)
    try:
        # The model was asked for this form, and most keep to it; what it wrote is still text from outside.
        routing = Routing.model_validate_json(answer)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise AgentError(f"RouterAgent did not choose an expert ({problem}). It said: {answer[:200]!r}") from error
    print(f"RouterAgent: {routing.agent}. {printable(routing.reason)}", flush=True)
    return None if routing.agent == "none" else routing.agent


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", type=message, help="what to ask (default: a demonstration)")
    parser.add_argument("--agent", choices=AGENTS, help="ask this agent, without the router")
    parser.add_argument("--session", type=key, metavar="KEY", help="continue the conversations with this key")
    parser.add_argument("--timeout", type=seconds, default=120, metavar="SECONDS", help="for each answer (120)")
    arguments = parser.parse_args()
    if arguments.session and not arguments.question:
        parser.error("--session continues a conversation: what is the question?")
    return arguments


if __name__ == "__main__":
    run(main)
