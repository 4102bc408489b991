"""What every local service does: read its port, say when it is ready, stop when asked to."""

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

HOST = "127.0.0.1"  # never another: everyone who can reach these services can use them


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
    """The order to stop, which a service waits for. A queue, because an Event may deadlock in a signal handler."""

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
        """Block until the order comes, or for this long; returns whether it came.

        At most a second at a time: on Windows, Ctrl-C does not interrupt a longer wait.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                self._orders.get(timeout=min(left, 1.0))
                return True
        return False


def stop_order(supervised: bool) -> StopOrder:
    """An order that SIGINT and SIGTERM give, and, if `supervised`, the end of standard input.

    That also ends a service whose supervisor was killed.
    """
    order = StopOrder()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: order.give())
    if supervised:

        def watch() -> None:
            while os.read(0, 4096):  # not sys.stdin: its lock would be held when the process ends before its input
                pass
            order.give()

        threading.Thread(target=watch, daemon=True).start()
    return order


def listening_socket(port: int) -> socket.socket:
    """A bound TCP socket on 127.0.0.1; if the port is in use, prints one line and exits."""
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # so that asyncio sets TCP_NODELAY, which saves 40 ms an answer
    if sys.platform != "win32":  # on Windows, this option would let two services share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        port_in_use(port)
    return listener


def port_in_use(port: int) -> NoReturn:
    """End the service: another program has its port."""
    print(f"Port {port} is in use. Stop what listens there, or choose another with --port.", file=sys.stderr)
    raise SystemExit(2)
