"""The offline model as a process to kill: it writes a journal of its requests, and stops where it is told."""

import asyncio
import json
import os
import sys
from typing import Any

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from local_services.offline_model.server import create_app
from local_services.service import listening_socket, report_ready
from runner.prove import stops

PIECE_SECONDS = 0.001  # of a stream
ANSWER_SECONDS = 0.15  # if it does not stop: so that a kill at a random moment hits something


class Model:
    """An ASGI application. With `forgetful`, its first answer is empty."""

    def __init__(self, forgetful: bool) -> None:
        self._app, self._forgetful = create_app(), forgetful
        self._journal = stops.folder() / stops.JOURNAL
        self._journal.touch()
        self._count = sum('"asked"' in line for line in self._journal.read_text().splitlines())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: journal it, and stop before its answer, or in the middle of it."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self._count += 1
        number, request = self._count, json.loads(body)
        self._note(number, asked=call_of(request))
        sent: list[Message] = []
        await self._app(scope, replay(body, receive), collecting(sent))
        start, *parts = sent
        whole = b"".join(part.get("body", b"") for part in parts)
        if self._forgetful and number == 1:
            whole = json.dumps(without_text(json.loads(whole))).encode()
        headers = [header for header in start["headers"] if header[0] != b"content-length"]
        await self._stop_at("request", number)
        if not os.environ["PROVE_STOP"]:
            await asyncio.sleep(ANSWER_SECONDS)
        await send({**start, "headers": headers})
        if request.get("stream"):
            events = whole.split(b"\n\n")
            for position, event in enumerate(events):
                if position == len(events) // 2:
                    await self._stop_at("half", number)
                await send({"type": "http.response.body", "body": event + b"\n\n", "more_body": True})
                await asyncio.sleep(PIECE_SECONDS)
        else:
            await send({"type": "http.response.body", "body": whole, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self._note(number, answered=text_of(whole))

    async def _stop_at(self, place: str, number: int) -> None:
        """Stop if this is the place. `request 1 2` stops both, and says so at the second."""
        first, *numbers = stops.wanted() or [""]
        if place == first and str(number) in numbers:
            waiting = asyncio.to_thread(stops.stop if str(number) == numbers[-1] else stops.wait)
            await waiting

    def _note(self, number: int, **what: Any) -> None:
        with self._journal.open("a") as journal:
            journal.write(json.dumps({"number": number, **what}) + "\n")


def call_of(request: dict[str, Any]) -> list[str]:
    """What tells a turn's call from others: the agent's instructions, and the last that the user says."""
    last = {message["role"]: str(message.get("content")) for message in request["messages"]}
    return [last.get("system", ""), last.get("user", "")]


def text_of(body: bytes) -> str:
    """The text of an answer, whole or streamed; empty if it calls tools."""
    if not body.startswith(b"data: "):
        return json.loads(body)["choices"][0]["message"]["content"] or ""
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event.startswith(b"data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def without_text(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, but the model says nothing."""
    answer["choices"][0]["message"]["content"] = ""
    return answer


def collecting(sent: list[Message]) -> Send:
    """What the application is given to send with."""

    async def collect(message: Message) -> None:
        sent.append(message)

    return collect


def replay(body: bytes, receive: Receive) -> Receive:
    """What the application is given to receive with: the request that was read already."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return left.pop() if left else await receive()

    return read


def main(port: int, forgetful: bool) -> None:
    """Serve until killed."""
    listener = listening_socket(port)
    report_ready("model", f"http://127.0.0.1:{port}")
    config = uvicorn.Config(Model(forgetful), log_level="critical", lifespan="off", ws="none", interface="asgi3")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]), "forgetful" in sys.argv)
