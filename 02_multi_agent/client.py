"""Asks the router who knows, and then that expert; each agent has a conversation of its own with this client."""

import argparse
import sys

from agent_framework_durabletask import AgentSessionId, DurableAgentSession
from models import Routing
from pydantic import ValidationError
from support import AgentClient, AgentError, UsageError, agent_client, key_of, run

AGENTS = ["PhysicistAgent", "ChemistAgent", "RouterAgent"]
DEMO = [
    "Why is the sky blue?",
    "What makes an acid an acid?",
    "Please explain that more simply.",  # to the same expert, in the same conversation
    "What is a black hole?",  # back to the first one, whose conversation goes on
    "Who wrote Hamlet?",
]


class Conversations:
    """One conversation with each agent that is asked, kept from question to question."""

    def __init__(self, agents: AgentClient) -> None:
        self._agents = agents
        self.sessions: dict[str, DurableAgentSession] = {}

    def ask(self, agent_name: str, question: str) -> str:
        """The agent's answer. Raises UsageError if there is no such agent, AgentError if it fails."""
        agent = self._agents.get_agent(agent_name)
        if agent_name not in self.sessions:
            self.sessions[agent_name] = agent.create_session()
        return agent.run(question, session=self.sessions[agent_name]).text

    def resume(self, agent_name: str, key: str) -> None:
        """Go on with the conversation that this key names, whichever process began it."""
        session = DurableAgentSession(durable_session_id=AgentSessionId(agent_name, key))
        if not self._agents.stored_conversation(session).message_count:
            print(f"(Conversation {key} of {agent_name} is not known here: it begins now.)", file=sys.stderr)
        self.sessions[agent_name] = session


def main() -> None:
    """Ask what the command line says, of the agent that it names or that the router chooses."""
    arguments = parse_arguments()
    agents = agent_client(AGENTS, timeout=arguments.timeout)
    conversations = Conversations(agents)
    if arguments.agent is not None:
        agents.get_agent(arguments.agent)  # refuses an unknown name before anything is asked
        if arguments.session:
            conversations.resume(arguments.agent, arguments.session)

    for question in [arguments.question] if arguments.question else DEMO:
        print(f"You: {question}", flush=True)
        agent_name = choose_expert(conversations, question) if arguments.agent is None else arguments.agent
        if agent_name:
            print(f"{agent_name}: {conversations.ask(agent_name, question)}\n", flush=True)
        else:
            print("No expert for this: it is neither physics nor chemistry.\n", flush=True)
    show_keys(conversations)


def choose_expert(conversations: Conversations, question: str) -> str | None:
    """The expert that RouterAgent picks, None if it knows of none. Raises AgentError if its answer is no choice."""
    answer = conversations.ask("RouterAgent", question)
    try:
        # The model was asked for this form, and most keep to it; what it wrote is still text from outside.
        routing = Routing.model_validate_json(answer)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise AgentError(f"RouterAgent did not choose an expert ({problem}). It said: {answer[:200]!r}") from error
    print(f"RouterAgent: {routing.agent}. {routing.reason}", flush=True)
    return None if routing.agent == "none" else routing.agent


def show_keys(conversations: Conversations) -> None:
    """Print how to go on with each expert: its conversation is its name and a key."""
    experts = {name: session for name, session in conversations.sessions.items() if name != "RouterAgent"}
    if experts:
        print("Each expert has a conversation of its own. To go on:")
    for agent_name, session in experts.items():
        print(f'  python client.py --agent {agent_name} --session {key_of(session)} "Please explain that more simply."')


def parse_arguments() -> argparse.Namespace:
    """The command line. Raises UsageError where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", help="what to ask (default: a demonstration of five questions)")
    parser.add_argument("--agent", metavar="NAME", help=f"ask this agent, without the router: {', '.join(AGENTS)}")
    parser.add_argument("--session", metavar="KEY", help="continue the conversation with this key; needs --agent")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="how long to wait for each answer (120)"
    )
    arguments = parser.parse_args()
    if arguments.question is not None and not arguments.question.strip():
        raise UsageError('The question is empty. Try: python client.py "What is entropy?"')
    if arguments.session is not None:
        if arguments.agent is None:
            raise UsageError("--session needs --agent: a conversation is an agent's name and a key.")
        if not arguments.session or "@" in arguments.session:
            raise UsageError("A conversation's key is not empty and has no '@' in it.")
    return arguments


if __name__ == "__main__":
    run(main)
