"""Asks TravelPlanner without waiting, and prints the answer while it is written; any client can read on later."""

import argparse
import asyncio
import re
import sys

from hosting.agent_client import AgentClient
from hosting.conversation import key, key_of, message, session_of
from hosting.program import AgentError, run
from hosting.scheduler import scheduler_client
from hosting.terminal import ProgressLine, command, printable, seconds

from redis_stream import redis_client, stream_ttl
from redis_stream_response_handler import START, RedisStreamResponseHandler, StreamChunk

DEMO = "Plan a 3-day trip to Tokyo next week. I like food and gardens."


def main() -> None:
    """Ask what the command line says, or continue with an answer that was asked for earlier."""
    arguments = parse_arguments()
    redis, ttl = redis_client(), stream_ttl()
    agents = AgentClient(scheduler_client(), arguments.timeout)
    planner = agents.get_agent("TravelPlanner")
    session = session_of("TravelPlanner", arguments.session) if arguments.session else planner.create_session()

    print(f"Conversation {key_of(session)}", flush=True)
    question = None
    if arguments.message:
        if arguments.session and not agents.stored_conversation(session).message_count:
            print("(Nothing was said in it yet: it begins now.)", file=sys.stderr)
        print(f"You: {printable(arguments.message)}\n")
        # Returns immediately. From here on the answer is written, whether or not anybody reads it.
        question = planner.run(arguments.message, session=session, options={"wait_for_response": False}).response_id
    handler = RedisStreamResponseHandler(redis, ttl, lambda _: agents.stored_conversation(session), arguments.timeout)
    asyncio.run(follow(handler, key_of(session), arguments.cursor, question, arguments.disconnect_after))


async def follow(
    handler: RedisStreamResponseHandler, key: str, cursor: str, question: str | None, at_most: int | None
) -> None:
    """Print an answer piece by piece. Raises AgentError if it fails, or fails to appear."""
    resume, pieces, silence, progress = f"{command()} --session {key}", 0, 0, ProgressLine()
    try:
        async with handler:
            if question:
                await handler.announce(key, question)
            async for chunk in handler.read_stream(key, cursor, question):
                if chunk == StreamChunk(chunk.entry_id):
                    silence += 1  # seconds
                    if silence == 2 and pieces:
                        print(file=sys.stderr)  # leaves the line with the text
                    progress.show("waiting for TravelPlanner")
                    continue
                progress.clear()
                silence, progress = 0, ProgressLine()
                if chunk.notice:  # about the answer, or about how it comes
                    print(f"\n\n[{chunk.notice}]\n", file=sys.stdout if chunk.restarted else sys.stderr, flush=True)
                print(printable(chunk.text), end="", flush=True)
                pieces += bool(chunk.text)
                if chunk.entry_id != START:
                    resume = f"{command()} --session {key} --cursor {chunk.entry_id}"
                if chunk.error:
                    print(end="\n" if pieces else "", flush=True)
                    raise AgentError(chunk.error if chunk.is_done else f"{chunk.error}\nTo read on:\n  {resume}")
                if chunk.is_done:
                    print(f'\n\nTo continue:\n  {command()} --session {key} "What if it rains?"')
                    return
                if pieces == at_most:
                    print(f"\n\n[Disconnected after {pieces} chunks.] To read on:\n  {resume}")
                    return
    except asyncio.CancelledError:  # Ctrl-C
        print(f"\n\n[Interrupted; the answer is written without you.] To read on:\n  {resume}", flush=True)
        raise


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("message", nargs="?", type=message, help="what to ask (default: a trip to Tokyo)")
    parser.add_argument("--session", type=key, metavar="KEY", help="without a message: read its newest answer")
    parser.add_argument("--cursor", default=START, metavar="ID", help="read on after this chunk")
    parser.add_argument("--disconnect-after", type=int, metavar="N", help="leave after N chunks, to try --cursor")
    parser.add_argument("--timeout", type=seconds, default=120, metavar="SECONDS", help="of silence (120)")
    arguments = parser.parse_args()
    if not re.fullmatch(r"\d{1,20}-\d{1,20}", arguments.cursor, re.ASCII):
        parser.error("--cursor takes the id of a chunk, such as 1732300000000-0; Ctrl-C prints one")
    if arguments.cursor != START and (arguments.message or not arguments.session):
        parser.error("--cursor reads on in an answer: it needs --session, and takes no message")
    if arguments.disconnect_after is not None and arguments.disconnect_after < 1:
        parser.error("--disconnect-after takes a number of chunks, 1 or more")
    if not arguments.session:
        arguments.message = arguments.message or DEMO
    return arguments


if __name__ == "__main__":
    run(main)
