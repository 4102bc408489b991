"""Reads and changes a task hub, only with the public client: of this scheduler, the DTS emulator or Azure."""

import functools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import grpc
from azure.core.exceptions import ClientAuthenticationError
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.client import EntityQuery, OrchestrationQuery, OrchestrationState, OrchestrationStatus
from durabletask.entities import EntityInstanceId
from durabletask.grpc_options import GrpcChannelOptions
from durabletask.history import HistoryEvent

from local_services.dashboard.conversation import PREFIX, Summary, summary
from local_services.dashboard.words import aware, failure_text, first_line

CALL_SECONDS = 5.0  # for each call; after that the scheduler counts as unreachable
FRESH_SECONDS = 0.5  # younger lists are not read again: many pages may show one hub
FULL_SECONDS = 10.0  # how often the whole list is read, to notice what was purged
PAGE = 500  # items in one answer
OVERLAP = timedelta(seconds=1)  # the query for new items begins this much before the newest known one
MISSED_LIMIT = 200  # more instances than this are not read one by one

STATUSES = ("RUNNING", "COMPLETED", "FAILED", "PENDING", "SUSPENDED", "TERMINATED")
ACTIVE = [OrchestrationStatus.RUNNING, OrchestrationStatus.PENDING, OrchestrationStatus.SUSPENDED]

T = TypeVar("T")


class SchedulerProblem(Exception):
    """The scheduler is unreachable, or refuses the call; the message is for a person."""


@dataclass(frozen=True)
class Orchestration:
    """An orchestration in the list."""

    id: str
    name: str
    status: str
    started: datetime
    updated: datetime
    custom_status: str  # its first line

    @property
    def is_active(self) -> bool:
        """Whether it is unfinished."""
        return self.status in {status.name for status in ACTIVE}


@dataclass(frozen=True)
class Details(Orchestration):
    """An orchestration with all its data except its history."""

    input: str | None
    output: str | None
    raw_custom_status: str | None
    failure: str


@dataclass(frozen=True)
class Session:
    """A conversation with an agent, in the list."""

    entity: EntityInstanceId
    changed: datetime

    @property
    def id(self) -> str:
        """Its id in the scheduler."""
        return str(self.entity)


class Hub:
    """A task hub. Its lists are cached here, and updated when a page is open; any thread may call."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint = endpoint
        self.name = name
        self.orchestrations: tuple[Orchestration, ...] = ()  # newest first
        self.sessions: tuple[Session, ...] = ()  # the one that changed last first
        self._client = _client(endpoint, name)
        self._lock = threading.Lock()
        self._next_look = self._next_full_look = 0.0
        self._remembered: dict[str, tuple[datetime, Any]] = {}

    # Lists ---------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Update the lists. Raises SchedulerProblem."""
        with self._lock, self._problems():
            began = time.monotonic()
            if began < self._next_look:
                return
            full = began >= self._next_full_look
            self._read_orchestrations(full)
            self._read_sessions(full)
            ended = time.monotonic()
            if full:
                self._next_full_look = ended + max(FULL_SECONDS, 20 * (ended - began))
            self._next_look = ended + max(FRESH_SECONDS, 2 * (ended - began))  # limits the load

    def _read_orchestrations(self, full: bool) -> None:
        known = {} if full else {row.id: row for row in self.orchestrations}
        if known:
            found = self._query(created_time_from=self.orchestrations[0].started - OVERLAP)
            found += self._query(runtime_status=ACTIVE)
            found_ids = {row.id for row in found}
            ended = [row.id for row in known.values() if row.is_active and row.id not in found_ids]
            if len(ended) > MISSED_LIMIT:
                return self._read_orchestrations(full=True)
            for instance_id in ended:
                state = self._client.get_orchestration_state(instance_id, fetch_payloads=False)
                found += [_row(state)] if state else []
                known.pop(instance_id)
        else:
            found = self._query()
        known |= {row.id: row for row in found}
        self.orchestrations = tuple(sorted(known.values(), key=lambda row: (row.started, row.id), reverse=True))

    def _query(self, **filters: Any) -> list[Orchestration]:
        states = self._client.get_all_orchestration_states(OrchestrationQuery(max_instance_count=PAGE, **filters))
        # Some backends list entities too.
        return [_row(state) for state in states if not state.instance_id.startswith("@")]

    def _read_sessions(self, full: bool) -> None:
        known = {} if full else {session.id: session for session in self.sessions}
        query = EntityQuery(
            instance_id_starts_with=f"@{PREFIX}", include_state=False, include_transient=True, page_size=PAGE
        )
        if known:
            query.last_modified_from = self.sessions[0].changed - OVERLAP
        for entity in self._client.get_all_entities(query):
            known[str(entity.id)] = Session(entity.id, aware(entity.last_modified))
        self.sessions = tuple(sorted(known.values(), key=lambda one: (one.changed, one.id), reverse=True))

    def counts(self) -> Counter[str]:
        """The number of orchestrations with each status."""
        return Counter(row.status for row in self.orchestrations)

    def find(self, status: str = "", text: str = "") -> list[Orchestration]:
        """The orchestrations with this status whose id, name or custom status contains the text."""
        words = text.casefold()
        return [
            row
            for row in self.orchestrations
            if status in ("", row.status) and words in f"{row.id}\n{row.name}\n{row.custom_status}".casefold()
        ]

    def find_sessions(self, text: str = "") -> list[Session]:
        """The sessions whose agent or key contains the text."""
        words = text.casefold()
        return [session for session in self.sessions if words in session.id.casefold()]

    def custom_statuses(self, rows: Iterable[Orchestration]) -> dict[str, str]:
        """The custom status of each row. The list may not have it: DTS may send it only with the payloads."""
        with self._problems():
            return {row.id: row.custom_status or self._custom_status(row) for row in rows}

    def _custom_status(self, row: Orchestration) -> str:
        def read() -> str:
            state = self._client.get_orchestration_state(row.id)
            return first_line(state.serialized_custom_status) if state else ""

        return self._remember(row.id, row.updated, read)

    def summaries(self, sessions: Iterable[Session]) -> dict[str, Summary]:
        """Turns and tokens of each session."""

        def read(session: Session) -> Summary:
            return summary(self._state(session.entity), session.entity.entity)

        with self._problems():
            return {one.id: self._remember(one.id, one.changed, lambda one=one: read(one)) for one in sessions}

    def _remember(self, key: str, changed: datetime, read: Callable[[], T]) -> T:
        """The value from the cache, or read again if the item has changed since."""
        known = self._remembered.get(key)
        if known and known[0] == changed:
            return known[1]
        value = read()
        self._remembered[key] = (changed, value)
        return value

    # Single orchestrations and sessions ----------------------------------------------------------------------------

    def orchestration(self, instance_id: str) -> Details | None:
        """An orchestration with its payloads; None if there is none with this id. Raises SchedulerProblem."""
        with self._problems():
            state = self._client.get_orchestration_state(instance_id)
        return _details(state) if state else None

    def history(self, instance_id: str) -> list[HistoryEvent]:
        """Its history so far; empty if there is no such orchestration. Raises SchedulerProblem."""
        with self._problems():
            try:
                return self._client.get_orchestration_history(instance_id)
            except grpc.RpcError as error:
                if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                    return []
                raise

    def session_changed(self, entity: EntityInstanceId) -> tuple[datetime, int] | None:
        """When a conversation changed last, and its number of waiting messages; None if there is none."""
        with self._problems():
            found = self._client.get_entity(entity, include_state=False)
        return (aware(found.last_modified), found.backlog_queue_size) if found else None

    def session_state(self, entity: EntityInstanceId) -> str:
        """The raw state of a conversation. Raises SchedulerProblem."""
        with self._problems():
            return self._state(entity)

    def _state(self, entity: EntityInstanceId) -> str:
        found = self._client.get_entity(entity)
        return (found.get_state() or "") if found else ""

    def act(self, call: Callable[[DurableTaskSchedulerClient], T]) -> T:
        """Do something with the client, and read the whole lists afterwards. Raises SchedulerProblem."""
        with self._problems():
            result = call(self._client)
        self._next_look = self._next_full_look = 0.0
        return result

    @contextmanager
    def _problems(self) -> Iterator[None]:
        """Turn errors of a call into messages for a person."""
        try:
            yield
        except grpc.RpcError as error:
            code, words = (error.code(), error.details()) if isinstance(error, grpc.Call) else (None, str(error))
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                problem = f"The scheduler at {self.endpoint} does not answer. This page continues as soon as it does."
            else:
                problem = f"The scheduler at {self.endpoint} refuses the call: {words} ({code.name if code else '?'})"
            raise SchedulerProblem(problem) from error
        except ClientAuthenticationError as error:
            raise SchedulerProblem(f"No Azure identity: run 'az login'. {error.message.splitlines()[0]}") from error


def _row(state: OrchestrationState) -> Orchestration:
    return Orchestration(
        id=state.instance_id,
        name=state.name,
        status=state.runtime_status.name,
        started=aware(state.created_at),
        updated=aware(state.last_updated_at),
        custom_status=first_line(state.serialized_custom_status),
    )


def _details(state: OrchestrationState) -> Details:
    return Details(
        **vars(_row(state)),
        input=state.serialized_input,
        output=state.serialized_output,
        raw_custom_status=state.serialized_custom_status,
        failure=failure_text(state.failure_details),
    )


class _Deadline(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Limits the time of every call: the client's methods have no timeout, so a silent scheduler would block a page."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(client_call_details._replace(timeout=CALL_SECONDS), request)

    intercept_unary_stream = intercept_unary_unary


def _client(endpoint: str, hub: str) -> DurableTaskSchedulerClient:
    secure = endpoint.startswith("https://")
    return DurableTaskSchedulerClient(
        host_address=endpoint.rstrip("/"),
        taskhub=hub,
        secure_channel=secure,
        token_credential=_azure_credential() if secure else None,
        interceptors=[_Deadline()],
        logger=logging.getLogger("durabletask"),
        channel_options=GrpcChannelOptions(
            max_receive_message_length=-1,  # a page of conversations or a history may be larger than gRPC's 4 MiB
            max_send_message_length=-1,
            raw_options=[("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)],
        ),
    )


@functools.cache
def _azure_credential() -> Any:
    from azure.identity import DefaultAzureCredential  # takes a fifth of a second, and is not needed locally

    return DefaultAzureCredential()


def endpoint() -> str:
    """The scheduler's address, from the same settings as the samples'."""
    return os.environ.get("ENDPOINT", "").strip() or "http://localhost:8080"


def default_hub() -> str:
    """The first task hub to show, from the same settings as the samples'."""
    return os.environ.get("TASKHUB", "").strip() or "default"


@functools.cache
def hub(name: str) -> Hub:
    """The task hub with that name; all pages share it."""
    return Hub(endpoint(), name)
