"""Calls to the scheduler: each has a deadline, waits while the scheduler is unreachable, and takes effect once."""

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import grpc

from .endpoint import scheduler_address

CONNECT_SECONDS = 5.0  # for the first call of a process: a scheduler that was never reached is not waited for
CALL_SECONDS = 10.0  # for one attempt at a later call
OUTAGE_SECONDS = 30.0  # how long a call waits for a scheduler that was reached before

_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_patience = ContextVar("_patience", default=OUTAGE_SECONDS)


@contextmanager
def waiting_at_most(seconds: float) -> Iterator[None]:
    """In its body, calls wait this long for an unreachable scheduler (but 2 s at least, OUTAGE_SECONDS at most)."""
    token = _patience.set(min(OUTAGE_SECONDS, max(2.0, seconds)))
    try:
        yield
    finally:
        _patience.reset(token)


class PatientCalls(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Repeats a call while the scheduler is unreachable; says in one line when it is lost, and when it is back.

    A call whose reply was lost may have taken effect. All attempts carry the same x-request-id, by which the local
    scheduler recognizes a repeated one. DTS ignores it: there, a repeated start of an orchestration is refused, which
    counts as success; signals to entities and results of workers have their own ids; an event may arrive twice, so one
    that must count once needs an id in its data, such as the decisions in sample 07.
    """

    def __init__(self) -> None:
        self._heard = 0.0  # when the scheduler answered last; 0: never
        self._lost = 0.0  # since when it is unreachable; 0: it is reachable
        self._lock = threading.Lock()

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        details, method = client_call_details, client_call_details.method.rpartition("/")[2]
        if not method.startswith(("Hello", "Get", "WaitFor", "Query", "List")):  # it changes something
            details = details._replace(metadata=[*(details.metadata or ()), ("x-request-id", uuid.uuid4().hex)])
        waits = method.startswith("WaitFor")  # the SDK sets its caller's deadline
        patient, repeated = self._heard > 0 and method != "Hello", False  # a worker repeats Hello itself
        began, seconds = time.monotonic(), details.timeout
        ends = began + ((_patience.get() if patient else CONNECT_SECONDS) if seconds is None else seconds)
        while True:
            left = max(0.0, ends - began)
            call = continuation(details._replace(timeout=left if waits else min(left, CALL_SECONDS)), request)
            code = call.code()
            if code not in _UNREACHABLE:
                self._answered()
                refused = repeated and code is grpc.StatusCode.ALREADY_EXISTS and method == "StartInstance"
                return _started(request) if refused else call
            if waits and code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return call
            self._unanswered(began)
            if not patient or (time.monotonic() + 0.2 > ends and not waits):  # a wait ends with its deadline
                return call
            time.sleep(0.2)
            repeated, began, details = True, time.monotonic(), details._replace(wait_for_ready=True)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        call = continuation(client_call_details, request)
        call.add_done_callback(lambda ended: ended.code() is _UNREACHABLE[0] and self._unanswered(time.monotonic()))
        return call

    def _answered(self) -> None:
        with self._lock:
            self._heard = time.monotonic()
            if self._lost:
                _say(f"is back after {self._heard - self._lost:.0f} s.")
                self._lost = 0.0

    def _unanswered(self, began: float) -> None:
        with self._lock:
            if 0 < self._heard < began and not self._lost:  # otherwise it answers other calls
                self._lost = time.monotonic()
                _say("is unreachable. Waiting for it to come back.")


def _started(request: Any) -> Any:
    """The answer to the start of an orchestration, of which the SDK reads the instance id alone."""
    return SimpleNamespace(result=lambda: request, exception=lambda: None, code=lambda: grpc.StatusCode.OK)


def _say(what: str) -> None:
    """Print a line on stderr. On a terminal, the cursor may be in the middle of an answer or of a progress line."""
    line = f"The scheduler at {scheduler_address()} {what}"
    print(f"\n{line}" if sys.stderr.isatty() else line, flush=True, file=sys.stderr)
