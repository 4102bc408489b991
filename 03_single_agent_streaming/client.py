"""Asks TravelPlanner without waiting, and prints the answer while it is written; any client can read on later."""

import argparse
import asyncio
import sys

from hosting.agent_client import AgentClient
from hosting.agent_runtime import entity_of
from hosting.conversation import key, key_of, message, session_of
from hosting.program import AgentError, run
from hosting.scheduler import scheduler_client
from hosting.terminal import ProgressLine, command, printable, seconds

from approvals import DECIDED, untold_calls
from redis_stream import redis_client, stream_ttl
from redis_stream_response_handler import START, RedisStreamResponseHandler, StreamChunk, cursor

DEMO = "Plan a 3-day trip to Tokyo next week. I like food and gardens."


def main() -> None:
    """Ask what the command line says, or continue with an answer that was asked for earlier."""
    arguments = parse_arguments()
    agents = AgentClient(scheduler_client(), arguments.timeout)
    planner = agents.get_agent("TravelPlanner")
    session = session_of("TravelPlanner", arguments.session) if arguments.session else planner.create_session()
    redis, ttl, stored = redis_client(), stream_ttl(), lambda _: agents.stored_conversation(session)
    handler = RedisStreamResponseHandler(redis, ttl, stored, arguments.timeout)

    print(f"Conversation {key_of(session)}", flush=True)
    question = None
    if arguments.message:
        if arguments.session and not agents.stored_conversation(session).message_count:
            print("(Nothing was said in it yet: it begins now.)", file=sys.stderr)
        print(f"You: {printable(arguments.message)}\n")
        # Returns immediately. From here on the answer is written, whether or not anybody reads it.
        question = planner.run(arguments.message, session=session, options={"wait_for_response": False}).response_id
    ended = asyncio.run(follow(handler, key_of(session), arguments.cursor, question, arguments.disconnect_after or 0))
    calls = untold_calls(scheduler_client(), entity_of(session)) if ended and not arguments.message else {}
    for call, news in calls.items():
        print(f"\n[{news}]\n", flush=True)
        asyncio.run(follow(handler, key_of(session), START, call + DECIDED))


async def follow(handler: RedisStreamResponseHandler, key: str, cursor: str, turn: str | None, limit: int = 0) -> bool:
    """Print an answer piece by piece; True: to its end. Raises AgentError if it fails, or fails to appear."""
    resume, pieces, silence, progress = f"{command()} --session {key}", 0, 0, ProgressLine()
    try:
        async with handler:
            if turn and not turn.endswith(DECIDED):
                await handler.announce(key, turn)
            async for chunk in handler.read_stream(key, cursor, turn):
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
                    return True
                if pieces and pieces == limit:
                    print(f"\n\n[Disconnected after {pieces} chunks.] To read on:\n  {resume}")
                    return False
    except asyncio.CancelledError:  # Ctrl-C
        print(f"\n\n[Interrupted; the answer is written without you.] To read on:\n  {resume}", flush=True)
        raise
    return False


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("message", nargs="?", type=message, help="what to ask (default: a trip to Tokyo)")
    parser.add_argument("--session", type=key, metavar="KEY", help="without a message: read its newest answer")
    parser.add_argument("--cursor", type=cursor, default=START, metavar="ID", help="read on after this chunk")
    parser.add_argument("--disconnect-after", type=int, metavar="N", help="leave after N chunks, to try --cursor")
    parser.add_argument("--timeout", type=seconds, default=120, metavar="SECONDS", help="of silence (120)")
    arguments = parser.parse_args()
    if arguments.cursor != START and (arguments.message or not arguments.session):
        parser.error("--cursor reads on in an answer: it needs --session, and takes no message")
    if arguments.disconnect_after is not None and arguments.disconnect_after < 1:
        parser.error("--disconnect-after takes a number of chunks, 1 or more")
    arguments.message = arguments.message or (None if arguments.session else DEMO)
    return arguments


if __name__ == "__main__":
    run(main)
