"""Talks to Joker, from a process of its own: a conversation is a key, and the scheduler keeps what was said."""

import argparse
import sys

from agent_framework import AgentResponse
from agent_framework_durabletask import AgentSessionId, DurableAgentSession, DurableAIAgent
from support import AgentError, UsageError, agent_client, key_of, run

DEMO = ["Tell me a joke about a pirate.", "Now explain that joke."]  # the second needs the first


def main() -> None:
    """Ask Joker what the command line says, in a new conversation or in one that began earlier."""
    arguments = parse_arguments()
    agents = agent_client(["Joker"], timeout=arguments.timeout)
    joker = agents.get_agent("Joker")
    session = joker.create_session()
    if arguments.session:
        # A key is all it takes to go on with a conversation that any process began, at any time.
        session = DurableAgentSession(durable_session_id=AgentSessionId("Joker", arguments.session))
        if not agents.stored_conversation(session).message_count:
            print(f"(Conversation {arguments.session} is not known here: it begins now.)", file=sys.stderr)

    key = key_of(session)
    print(f"Conversation {key}", flush=True)  # first: who leaves before the answer can look for it later
    if arguments.chat:
        chat(joker, session)
    else:
        for message in [arguments.message] if arguments.message else DEMO:
            print(f"You:   {message}", flush=True)
            tell(joker, session, message)
    print(f'To go on:\n  python client.py --session {key} "What did I ask first?"')


def tell(joker: DurableAIAgent[AgentResponse], session: DurableAgentSession, message: str) -> None:
    """One turn. The worker may die and come back while this waits: the question is with the scheduler."""
    answer = joker.run(message, session=session)
    print(f"Joker: {answer.text}\n", flush=True)


def chat(joker: DurableAIAgent[AgentResponse], session: DurableAgentSession) -> None:
    """Turn by turn, until `exit` or Ctrl-D. A turn that fails does not end the conversation."""
    print("Talk to Joker; 'exit' or Ctrl-D ends.")
    while True:
        try:
            message = input("You:   ").strip()
        except EOFError:
            print()
            return
        if message == "exit":
            return
        if message:
            try:
                tell(joker, session, message)
            except AgentError as error:
                print(f"(no answer) {error}\n", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line. Raises UsageError where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("message", nargs="?", help="what to say to Joker (default: a demonstration of two turns)")
    parser.add_argument("--session", metavar="KEY", help="continue the conversation with this key")
    parser.add_argument("--chat", action="store_true", help="talk until 'exit' or Ctrl-D")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="how long to wait for each answer (120)"
    )
    arguments = parser.parse_args()
    if arguments.message is not None and not arguments.message.strip():
        raise UsageError('The message is empty. Try: python client.py "Tell me a joke about a cat."')
    if arguments.session is not None and (not arguments.session or "@" in arguments.session):
        raise UsageError("A conversation's key is not empty and has no '@' in it.")
    return arguments


if __name__ == "__main__":
    run(main)
