"""What every local service does alike: read its port, say when it is ready, stop when told to."""

import argparse
import math
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NoReturn

HOST = "127.0.0.1"  # never another: whoever can reach these services can use them


def service_arguments(description: str | None, default_port: int) -> argparse.ArgumentParser:
    """A parser with the options that all services share; `--port 0` picks a free port."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=default_port, help="0 picks a free one (default: %(default)s)")
    parser.add_argument("--supervised", action="store_true", help="stop when standard input closes")
    return parser


def report_ready(name: str, address: str) -> None:
    """Print the line that says where the service listens; the supervisor waits for it."""
    print(f"{name} ready: {address}", flush=True)


class StopOrder:
    """What a service waits for. Signal handlers may give it: a queue takes what an Event might deadlock on."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[None] = SimpleQueue()

    def give(self) -> None:
        """Tell the service to stop."""
        self._orders.put(None)

    @property
    def given(self) -> bool:
        """Whether the order has come."""
        return not self._orders.empty()

    def wait(self, seconds: float = math.inf) -> bool:
        """Block until the order comes, or for so long; says whether it came.

        In slices: on Windows an endless wait would not hear Ctrl-C.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                self._orders.get(timeout=min(left, 1.0))
                return True
        return False


def stop_order(supervised: bool) -> StopOrder:
    """An order that SIGINT and SIGTERM give, and, if `supervised`, the end of standard input.

    The latter ends a service whose supervisor was killed and could not stop it.
    """
    order = StopOrder()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: order.give())
    if supervised:

        def watch() -> None:
            while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the process ends before its input
                pass
            order.give()

        threading.Thread(target=watch, daemon=True).start()
    return order


def listening_socket(port: int) -> socket.socket:
    """A bound TCP socket on this machine's loopback address, or the end with one line if the port is taken."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # named, so that asyncio sets TCP_NODELAY: 40 ms an answer
    if sys.platform != "win32":  # there, this option would let two services share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        port_in_use(port)
    return listener


def port_in_use(port: int) -> NoReturn:
    """End the service: somebody else has its port."""
    print(f"Port {port} is in use. Stop what listens there, or choose another with --port.", file=sys.stderr)
    raise SystemExit(2)
