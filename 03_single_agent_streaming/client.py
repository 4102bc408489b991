"""Asks TravelPlanner without waiting, and prints the answer as it is written; any client can go on where one left."""

import argparse
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from agent_framework_durabletask import AgentSessionId, DurableAgentSession
from redis_stream_response_handler import START, StreamChunk, stream_handler
from support import AgentError, UsageError, agent_client, key_of, run

DEMO = "Plan a 3-day trip to Tokyo next week. I like food and gardens."


def main() -> None:
    """Ask what the command line says, or go on reading an answer that was asked for earlier."""
    arguments = parse_arguments()
    agents = agent_client(["TravelPlanner"])
    planner = agents.get_agent("TravelPlanner")
    streams = stream_handler(lambda key: agents.stored_conversation(conversation(key)), patience=arguments.timeout)

    session = conversation(arguments.session) if arguments.session else planner.create_session()
    key = key_of(session)
    print(f"Conversation {key}", flush=True)
    correlation_id = None
    if arguments.message:
        print(f"You: {arguments.message}\n", flush=True)
        # Returns at once. From here on the answer is written whether or not anybody reads it.
        correlation_id = planner.run(
            arguments.message, session=session, options={"wait_for_response": False}
        ).response_id
        assert correlation_id is not None
        streams.announce(key, correlation_id)
    follow(streams.read_stream(key, arguments.cursor, correlation_id), key, arguments.disconnect_after)


def follow(chunks: Iterator[StreamChunk], key: str, disconnect_after: int | None) -> None:
    """Print chunks as they come. Raises AgentError if the answer fails, or fails to appear."""
    resume = f"python client.py --session {key}"
    pieces = 0
    try:
        for chunk in chunks:
            with uninterrupted():  # so that the cursor is always that of the last chunk on the screen
                show(chunk)
                if chunk.entry_id != START:
                    resume = f"python client.py --session {key} --cursor {chunk.entry_id}"
            if chunk.error:
                print(flush=True)
                raise AgentError(chunk.error if chunk.is_done else f"{chunk.error}\nTo read on:\n  {resume}")
            if chunk.is_done:
                print(f'\n\nTo go on:\n  python client.py --session {key} "What if it rains?"')
                return
            pieces += bool(chunk.text)
            if pieces == disconnect_after:
                print(f"\n\n[Disconnected after {pieces} chunks.] To read on:\n  {resume}")
                return
    except KeyboardInterrupt:
        print(f"\n\n[Interrupted; the answer goes on without you.] To read on:\n  {resume}", flush=True)
        raise


def show(chunk: StreamChunk) -> None:
    """Print a chunk. What concerns the answer goes to stdout, what concerns the way it came to stderr."""
    if chunk.restarted:
        print(f"\n\n[{chunk.notice}]\n", flush=True)
    elif chunk.notice:
        print(f"\n[{chunk.notice}]\n", file=sys.stderr, flush=True)
    print(chunk.text, end="", flush=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C takes effect only when the body is through."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def conversation(key: str) -> DurableAgentSession:
    """The conversation that this key names, whichever process began it."""
    return DurableAgentSession(durable_session_id=AgentSessionId("TravelPlanner", key))


def parse_arguments() -> argparse.Namespace:
    """The command line. Raises UsageError where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("message", nargs="?", help="what to ask (default: a trip to Tokyo)")
    parser.add_argument("--session", metavar="KEY", help="of a conversation; without a message, read its last answer")
    parser.add_argument("--cursor", metavar="ID", help="read on after this entry of the stream")
    parser.add_argument("--disconnect-after", type=int, metavar="N", help="leave after N chunks, to try --cursor")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="how long to wait for the next piece (120)"
    )
    arguments = parser.parse_args()
    if arguments.message is not None and not arguments.message.strip():
        raise UsageError('The message is empty. Try: python client.py "Plan a weekend in Lisbon."')
    if arguments.session is not None and (not arguments.session or "@" in arguments.session):
        raise UsageError("A conversation's key is not empty and has no '@' in it.")
    if arguments.cursor is not None:
        if not arguments.session or arguments.message:
            raise UsageError("--cursor reads on in an answer: it needs --session, and takes no message.")
        if not re.fullmatch(r"\d{1,20}-\d{1,20}", arguments.cursor, re.ASCII):
            raise UsageError("A cursor is the id of an entry, such as 1732300000000-0; one is printed on Ctrl-C.")
    if arguments.disconnect_after is not None and arguments.disconnect_after < 1:
        raise UsageError("--disconnect-after takes a number of chunks, 1 or more.")
    if not arguments.session and arguments.message is None:
        arguments.message = DEMO
    arguments.cursor = arguments.cursor or START
    return arguments


if __name__ == "__main__":
    run(main)
