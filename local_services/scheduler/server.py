"""A gRPC server on one thread, built on the core of grpcio's public server.

The public server passes each call from thread to thread, which takes twice as much processor time, and uses a thread
for each waiting client. The core is private to grpcio: only this file uses it, and a test covers it.
"""

import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc._cython import cygrpc

from local_services.service import HOST

TEXT_LIMIT = 500  # characters of an error: a client accepts 8 KB of metadata, and non-ASCII characters take more
WAITING_REQUESTS = 64  # calls that the core may accept before the loop's next turn

Handler = Callable[[Any, "Call"], None]


class Call:
    """A client's call: answered or refused once, now or later, or answered by a stream of messages.

    Attributes:
        metadata: the call's metadata, by name.
        is_over: whether the client is gone or has its answer.
    """

    def __init__(self, call: Any, metadata: dict[str, str]) -> None:
        self._call = call
        self.metadata = metadata
        self.is_over = False
        self._on_end: Callable[[], None] | None = None
        self._outgoing: deque[bytes] = deque()
        self._sending = self._begun = self._finishes = False

    def answer(self, message: Message) -> None:
        """Answer the call, which ends it."""
        self._finish(cygrpc.StatusCode.ok, "", message.SerializeToString())

    def refuse(self, code: grpc.StatusCode, text: str) -> None:
        """End the call with an error."""
        self._finish(code.value[0], text[:TEXT_LIMIT], None)

    def keep(self, on_end: Callable[[], None]) -> None:
        """Answer later. `on_end` is called once when the client is gone, or has its answer."""
        self._on_end = on_end
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._ended)

    def send(self, message: Message) -> None:
        """Send a message of a stream, after those that are still being sent. Only after `keep`."""
        self._outgoing.append(message.SerializeToString())
        self._send_next()

    def finish(self) -> None:
        """End a stream, after the messages that are still being sent."""
        if self._outgoing or self._sending:
            self._finishes = True
        else:
            self._finish(cygrpc.StatusCode.ok, "", None)

    def _finish(self, code: Any, text: str, message: bytes | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        operations: list[Any] = [cygrpc.SendStatusFromServerOperation((), code, text.encode(), 0)]
        if not self._begun:
            operations.append(cygrpc.SendInitialMetadataOperation((), 0))
        if message is not None:
            operations.append(cygrpc.SendMessageOperation(message, 0))
        if self._on_end is None:
            operations.append(cygrpc.ReceiveCloseOnServerOperation(0))
        self._call.start_server_batch(operations, self._finished)

    def _send_next(self) -> None:
        if self._sending or self.is_over or not self._outgoing:
            return
        operations: list[Any] = [cygrpc.SendMessageOperation(self._outgoing.popleft(), 0)]
        if not self._begun:
            operations.append(cygrpc.SendInitialMetadataOperation((), 0))
        self._sending = self._begun = True
        self._call.start_server_batch(operations, self._sent)

    def _sent(self, _: Any) -> None:
        self._sending = False
        self._send_next()
        if self._finishes and not self._sending:
            self._finish(cygrpc.StatusCode.ok, "", None)

    def _finished(self, _: Any) -> None:
        """Does nothing. The core holds a reference to this method, and so to the call, until the answer is sent."""

    def _ended(self, _: Any) -> None:
        self.is_over = True
        if self._on_end:
            self._on_end()


class Server:
    """Accepts calls on a port of this machine.

    Args:
        service: the name of the gRPC service.
        methods: by name: the type of a method's request, and what handles it.
        options: of the gRPC channel.
    """

    def __init__(self, service: str, methods: dict[str, tuple[Any, Handler]], options: list[tuple[str, int]]) -> None:
        self._methods = {f"/{service}/{name}".encode(): method for name, method in methods.items()}
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server([(name.encode(), value) for name, value in options], False)
        self._server.register_completion_queue(self._queue)

    def start(self, port: int) -> int:
        """Listen on a port (0: a free one); returns it."""
        port = self._server.add_http2_port(f"{HOST}:{port}".encode())
        self._server.start()
        for _ in range(WAITING_REQUESTS):
            self._request_call()
        return port

    def handle_next(self, until: float) -> bool:
        """Handle the next event until this time (seconds since 1970); returns whether there was one."""
        event = self._queue.poll(until)
        if event.completion_type == cygrpc.CompletionType.queue_timeout:
            return False
        try:
            event.tag(event)
        except Exception as error:  # only this call fails
            traceback.print_exception(error)
        return True

    def _request_call(self) -> None:
        self._server.request_call(self._queue, self._queue, self._begin)

    def _begin(self, event: Any) -> None:
        """A call has come: read its request."""
        self._request_call()
        call = Call(event.call, {name: value for name, value in event.invocation_metadata})
        method = event.call_details.method

        def read(event: Any) -> None:
            self._handle(method, event.batch_operations[0].message(), call)

        event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), read)

    def _handle(self, name: bytes, message: bytes | None, call: Call) -> None:
        if name not in self._methods:
            return call.refuse(grpc.StatusCode.UNIMPLEMENTED, f"There is no method {name.decode(errors='replace')}.")
        request_type, handler = self._methods[name]
        if message is None:
            return call.refuse(grpc.StatusCode.INVALID_ARGUMENT, "The request is empty, or too large.")
        try:
            request = request_type.FromString(message)
        except DecodeError:
            text = f"The request is not a {request_type.DESCRIPTOR.name}."
            return call.refuse(grpc.StatusCode.INVALID_ARGUMENT, text)
        try:
            handler(request, call)
        except Exception as error:
            traceback.print_exception(error)
            call.refuse(grpc.StatusCode.INTERNAL, f"The local scheduler failed: {type(error).__name__}: {error}")
        return None
