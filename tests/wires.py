"""gRPC calls to a scheduler in which a test can cause faults."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc


@dataclass
class Seen:
    """A call that came in."""

    method: str
    request_id: str | None
    seconds: float  # until its deadline


class CallProxy(grpc.GenericRpcHandler):
    """A gRPC server that forwards unary calls to a scheduler; without one it answers with an empty message.

    Attributes:
        seen: every call that came in, in order.
    """

    def __init__(self, address: str = "") -> None:
        self.seen: list[Seen] = []
        self._faults: list[tuple[str, Callable[[grpc.ServicerContext], Any]]] = []
        self._channel = grpc.insecure_channel(address.removeprefix("http://")) if address else None
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def fail(self, method: str, code: grpc.StatusCode, times: int = 1) -> None:
        """Let the scheduler do the next calls of this method, and then end them with this code."""
        self._faults += [(method, lambda context: context.abort(code, "ordered by the test"))] * times

    def hold(self, method: str, gate: threading.Event) -> None:
        """Let the scheduler do the next call of this method, and hold its reply until the gate is open."""
        self._faults.append((method, lambda context: gate.wait(60)))

    def calls(self, method: str) -> list[Seen]:
        """The calls of this method."""
        return [call for call in self.seen if call.method == method]

    def close(self) -> None:
        """Stop."""
        self._server.stop(None).wait()
        if self._channel:
            self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler for all methods; gRPC calls this."""
        path: Any = handler_call_details.method

        def serve(request: bytes, context: grpc.ServicerContext) -> bytes:
            method = path.rpartition("/")[2]
            metadata = {name: str(value) for name, value in context.invocation_metadata()}
            self.seen.append(Seen(method, metadata.get("x-request-id"), context.time_remaining()))
            reply = b""
            if self._channel:
                passed_on = tuple(item for item in metadata.items() if item[0] in ("taskhub", "x-request-id"))
                reply = self._channel.unary_unary(path)(request, metadata=passed_on, timeout=60)
            for fault in self._faults:
                if fault[0] == method:
                    self._faults.remove(fault)
                    fault[1](context)
                    break
            return reply

        return grpc.unary_unary_rpc_method_handler(serve)
