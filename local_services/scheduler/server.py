"""A gRPC server on one thread, on the same core as the public one of grpcio.

The public server hands each call from thread to thread, which takes twice as much of the processor's time as here, and
holds a thread for each client that waits. Its core is private to grpcio: this file alone uses it, with a test.
"""

import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc._cython import cygrpc

from local_services.service import HOST

TEXT_LIMIT = 500  # characters of an error: a client takes 8 KB of metadata, and those that are not ASCII take more
WAITING_REQUESTS = 64  # calls that the core may take in before the loop comes round again

Handler = Callable[[Any, "Call"], None]


class Call:
    """A client's call: answered or refused once, now or later, or answered by a stream of messages.

    Attributes:
        metadata: what the client sent along, by name.
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
        """Answer, which ends the call."""
        self._finish(cygrpc.StatusCode.ok, "", message.SerializeToString())

    def refuse(self, code: grpc.StatusCode, text: str) -> None:
        """End the call with an error."""
        self._finish(code.value[0], text[:TEXT_LIMIT], None)

    def keep(self, on_end: Callable[[], None]) -> None:
        """Answer later. `on_end` is called once when the client is gone, or has its answer."""
        self._on_end = on_end
        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._ended)

    def send(self, message: Message) -> None:
        """Send a message of a stream, after those that are still on their way. Only for a call that is kept."""
        self._outgoing.append(message.SerializeToString())
        self._send_next()

    def finish(self) -> None:
        """End a stream, after the messages that are still on their way."""
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
        """The answer is on its way. (The core holds this method, and so the call, until then.)"""

    def _ended(self, _: Any) -> None:
        self.is_over = True
        if self._on_end:
            self._on_end()


class Server:
    """Takes calls in, on a port of this machine.

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
        """Handle the next event, or return when the time is over: seconds since 1970. Says whether there was one."""
        event = self._queue.poll(until)
        if event.completion_type == cygrpc.CompletionType.queue_timeout:
            return False
        try:
            event.tag(event)
        except Exception as error:  # of one call; the other calls continue
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
            return call.refuse(grpc.StatusCode.INVALID_ARGUMENT, f"The request is no {request_type.DESCRIPTOR.name}.")
        try:
            handler(request, call)
        except Exception as error:
            traceback.print_exception(error)
            call.refuse(grpc.StatusCode.INTERNAL, f"The local scheduler failed: {type(error).__name__}: {error}")
        return None
