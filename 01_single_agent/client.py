"""Talks to Joker from a separate process: a conversation is a key, and the scheduler keeps what was said."""

import argparse
import sys

from hosting.agent_client import AgentClient
from hosting.conversation import key, key_of, message, session_of
from hosting.program import AgentError, run
from hosting.scheduler import scheduler_client
from hosting.terminal import command, printable, seconds, typed

from agent_framework import AgentResponse
from agent_framework_durabletask import DurableAgentSession, DurableAIAgent

DEMO = ["Tell me a joke about a pirate.", "Now explain that joke."]  # the second needs the first


def main() -> None:
    """Say to Joker what the command line says, in a new conversation or in one that began earlier."""
    arguments = parse_arguments()
    agents = AgentClient(scheduler_client(), arguments.timeout)
    joker = agents.get_agent("Joker")
    session = joker.create_session()
    if arguments.session:
        # The key is enough to continue a conversation that any process began, at any time.
        session = session_of("Joker", arguments.session)
        if not agents.stored_conversation(session).message_count:
            print(f"(Conversation {arguments.session} is not known here: it begins now.)", file=sys.stderr)

    print(f"Conversation {key_of(session)}", flush=True)  # first: with it you can come back, whatever happens
    try:
        unless_told = [] if arguments.chat else DEMO
        for text in [arguments.message] if arguments.message else unless_told:
            print(f"You:   {printable(text)}", flush=True)
            say(joker, session, text)
        if arguments.chat:
            chat(joker, session)
    except KeyboardInterrupt:
        print()  # after the terminal's ^C
        raise
    finally:
        print(f'To continue:\n  {command()} --session {key_of(session)} "What did I ask first?"', flush=True)


def say(joker: DurableAIAgent[AgentResponse], session: DurableAgentSession, text: str) -> None:
    """One turn. The worker may die and come back meanwhile: the scheduler has the question."""
    answer = joker.run(text, session=session)
    print(f"Joker: {printable(answer.text)}\n", flush=True)


def chat(joker: DurableAIAgent[AgentResponse], session: DurableAgentSession) -> None:
    """Turn by turn. A turn that fails does not end the conversation."""
    print("Talk to Joker; 'exit' or Ctrl-D ends.")
    while (text := typed("You:   ")) not in (None, "exit", "quit"):
        if text:
            try:
                say(joker, session, text)
            except AgentError as error:
                print(f"(no answer) {printable(error)}\n", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("message", nargs="?", type=message, help="what to say (default: a demonstration of two turns)")
    parser.add_argument("--session", type=key, metavar="KEY", help="continue the conversation with this key")
    parser.add_argument("--chat", action="store_true", help="talk until 'exit' or Ctrl-D")
    parser.add_argument("--timeout", type=seconds, default=120, metavar="SECONDS", help="for each answer (120)")
    arguments = parser.parse_args()
    if arguments.session and not arguments.message:
        arguments.chat = True
    return arguments


if __name__ == "__main__":
    run(main)
