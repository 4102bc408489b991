"""The offline model, in which a test can cause faults. It runs in the tests' process, so that they see each request."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from local_services.offline_model.server import create_app

ENDED = -2  # instead of the number of events left to send: the reply is over


@dataclass
class Fault:
    """What goes wrong with a request that matches, and how often."""

    times: int
    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # chunks of a stream; an answer that is not streamed is halved
    broken: bool = False  # whether the client's HTTP library notices the cut
    reply: str | None = None  # the text to answer
    said_with: dict[str, Any] = field(default_factory=dict)  # more fields of the answer's message
    finish_reason: str = "stop"  # of the answer
    raw: str | None = None  # the body to send instead of an answer
    matches: Callable[[dict[str, Any]], bool] = lambda request: True


class ScriptedModel:
    """An HTTP server like the offline model's, in a thread.

    Attributes:
        requests: every chat request that came in, as parsed JSON.
        delay: seconds before each reply.
        held: while it is not None, replies wait until it is set.
        held_for: the requests whose replies wait; all of them by default.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.delay = 0.0
        self.token_delay = 0.0
        self.held: threading.Event | None = None
        self.held_for: Callable[[dict[str, Any]], bool] = lambda request: True
        self._faults: list[Fault] = []
        self._app = create_app()
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)  # so that asyncio sets TCP_NODELAY
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(self._handle, interface="asgi3", log_level="critical", lifespan="off", ws="none")
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> "ScriptedModel":
        self._socket.listen(1024)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.held:
            self.held.set()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()

    def fail(self, status: int, message: str = "ordered by the test", times: int = 1000, **fault: Any) -> None:
        """Answer with an HTTP error, `times` times."""
        self._faults.append(Fault(times, status=status, message=message, **fault))

    def truncate(self, after: int, times: int = 1, **fault: Any) -> None:
        """End an answer after some chunks of its stream, like a complete one but without a finish reason."""
        self._faults.append(Fault(times, cut_after=after, **fault))

    def break_off(self, after: int, times: int = 1, **fault: Any) -> None:
        """Drop the connection in the middle of an answer, after some chunks of its stream."""
        self._faults.append(Fault(times, cut_after=after, broken=True, **fault))

    def say(self, reply: str, times: int = 1000, **fault: Any) -> None:
        """Answer with this text; `said_with={"refusal": …}` and `finish_reason` make it another kind of answer."""
        self._faults.append(Fault(times, reply=reply, **fault))

    def send(self, raw: str, times: int = 1000, **fault: Any) -> None:
        """Send this body instead of an answer."""
        self._faults.append(Fault(times, raw=raw, **fault))

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    def asked(self, text: str) -> list[dict[str, Any]]:
        """The requests whose last message contains the text."""
        return [request for request in list(self.requests) if text in str(request["messages"][-1].get("content"))]

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body)
        self.requests.append(request)
        await self._wait(request)
        fault = self._next_fault(request)
        if fault and fault.status:
            error = {"error": {"code": str(fault.status), "message": fault.message}}
            await JSONResponse(error, fault.status, headers=fault.headers)(scope, receive, send)
            return
        if fault and fault.raw is not None:
            await Response(fault.raw, headers=fault.headers, media_type="application/json")(scope, receive, send)
            return
        if fault and fault.reply is not None:
            await _reply(request, fault, fault.reply)(scope, receive, send)
            return
        if request.get("stream"):
            send = self._sending(send, fault)
        elif fault:
            send = _halving(send, fault.broken)
        await self._app(scope, _replay(body, receive), send)

    async def _wait(self, request: dict[str, Any]) -> None:
        if self.held and self.held_for(request):
            await asyncio.to_thread(self.held.wait)
        if self.delay:
            await asyncio.sleep(self.delay)

    def _next_fault(self, request: dict[str, Any]) -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.matches(request):
                fault.times -= 1
                return fault
        return None

    def _sending(self, send: Send, fault: Fault | None) -> Send:
        """Send a stream event by event, so that delays and cuts come between two events."""
        left = -1 if fault is None or fault.cut_after is None else fault.cut_after

        async def sending(message: Message) -> None:
            nonlocal left
            if left == ENDED:
                return
            if message["type"] != "http.response.body" or (left < 0 and not self.token_delay):
                await send(message)
                return
            for event in message["body"].split(b"\n\n"):
                if left == 0:
                    if fault and fault.broken:
                        raise ConnectionError("ordered by the test")
                    break
                if event:
                    left -= 1
                    await asyncio.sleep(self.token_delay)
                    await send({"type": message["type"], "body": event + b"\n\n", "more_body": True})
            if left == 0 or not message.get("more_body"):
                await send({"type": message["type"], "body": b"", "more_body": False})
                left = ENDED

        return sending


def _reply(request: dict[str, Any], fault: Fault, text: str) -> Response:
    """A whole answer with this text, in the form that the request asks for."""
    base = {"id": "chatcmpl-test", "created": 0, "model": "offline-model"}
    message = {"role": "assistant", "content": text, **fault.said_with}
    if not request.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": fault.finish_reason, "logprobs": None}
        text = json.dumps({**base, "object": "chat.completion", "choices": [choice]})  # also with half a character
        return Response(text, media_type="application/json")
    pieces = [(message, None), ({}, fault.finish_reason)]
    lines = [
        json.dumps(
            {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": d, "finish_reason": reason}]}
        )
        for d, reason in pieces
    ]
    return Response("".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]), media_type="text/event-stream")


def _halving(send: Send, broken: bool) -> Send:
    """Send half of a whole answer's text without a finish reason, or only half of its bytes."""

    async def sending(message: Message) -> None:
        if message["type"] != "http.response.body":
            if not broken:
                message["headers"] = [header for header in message["headers"] if header[0] != b"content-length"]
            await send(message)
            return
        body = message["body"]
        if broken:
            await send({**message, "body": body[: len(body) // 2], "more_body": True})
            raise ConnectionError("ordered by the test")
        answer = json.loads(body)
        choice = answer["choices"][0]
        choice["finish_reason"] = None
        choice["message"]["content"] = choice["message"]["content"][: len(choice["message"]["content"]) // 2]
        await send({**message, "body": json.dumps(answer).encode()})

    return sending


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
