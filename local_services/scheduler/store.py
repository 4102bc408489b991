"""The records of all task hubs in one SQLite file: each call's changes are one transaction."""
# ruff: noqa: S608 (what varies in the SQL are this file's own names of columns and tables; values are parameters)

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
from google.protobuf.message import DecodeError

from local_services.scheduler.records import Activity, Changes, Entity, Message, Orchestration, Refused, micros

VERSION = 1
APPLICATION = 0x44545331  # "DTS1", to recognise files of other programs

SCHEMA = """
CREATE TABLE orchestrations (
    key INTEGER PRIMARY KEY, hub TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, version TEXT,
    status INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, completed INTEGER, start_at INTEGER,
    parent TEXT, parent_key INTEGER, parent_task INTEGER, chunks INTEGER NOT NULL,
    tags TEXT NOT NULL, custom_status TEXT, failure BLOB, caller_trace BLOB, own_trace BLOB, input TEXT, output TEXT);
CREATE UNIQUE INDEX by_id ON orchestrations (hub, id);
CREATE INDEX by_creation ON orchestrations (hub, created, key, status);
CREATE INDEX by_completion ON orchestrations (hub, completed, key, status) WHERE completed IS NOT NULL;
CREATE INDEX unfinished ON orchestrations (hub) WHERE completed IS NULL;
CREATE INDEX by_parent ON orchestrations (parent_key) WHERE parent_key IS NOT NULL;
CREATE TABLE history (key INTEGER NOT NULL, chunk INTEGER NOT NULL, events BLOB NOT NULL, PRIMARY KEY (key, chunk));
CREATE TABLE activities (id INTEGER PRIMARY KEY, hub TEXT NOT NULL, key INTEGER NOT NULL, request BLOB NOT NULL);
CREATE TABLE entities (
    hub TEXT NOT NULL, id TEXT NOT NULL, modified INTEGER NOT NULL, lock TEXT NOT NULL, owner TEXT NOT NULL,
    state TEXT, PRIMARY KEY (hub, id));
CREATE INDEX locked ON entities (hub) WHERE lock != '';
CREATE TABLE messages (
    id INTEGER PRIMARY KEY, hub TEXT NOT NULL, target TEXT NOT NULL, due INTEGER, event BLOB NOT NULL, trace BLOB);
CREATE TABLE answers (hub TEXT, request TEXT, answer BLOB, at INTEGER, PRIMARY KEY (hub, request)) WITHOUT ROWID;
"""

_PAGE_BYTES = 2 * 1024 * 1024  # for one page of a query: a client receives at most 4 MB
_ORCHESTRATION = (
    "key, id, name, version, status, created, updated, completed, start_at, parent, parent_key, parent_task, chunks, "
    "tags, custom_status, failure, caller_trace, own_trace, input, output"
)


class StateUnusable(Exception):
    """The file cannot be used; the message says in one line why, and how to fix it."""


class Store:
    """One file, or with an empty path a database in memory.

    Args:
        path: the file, which is created if it does not exist. Its folder must exist.
        full_sync: whether each transaction also survives a power failure: it then waits until the disk has flushed.
    """

    def __init__(self, path: str, full_sync: bool = False) -> None:
        self._path = path
        with explained(path):
            if path:
                _make_private(Path(path))
            self._database = self._connect(full_sync)
        self.try_to_write()

    def _connect(self, full_sync: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path or ":memory:", isolation_level=None, cached_statements=256)
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        is_empty = not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        if is_empty:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        elif application != APPLICATION:
            raise StateUnusable(f"{self._path} belongs to another program. Choose another file with --state.")
        elif version != VERSION:
            raise StateUnusable(
                f"{self._path} has format version {version}, and this scheduler reads version "
                f"{VERSION}. Use the scheduler that wrote it, or choose another file with --state."
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # pages: 16 MB; pages that change often are copied once
        connection.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        if is_empty:
            connection.executescript(
                f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT"
            )
        return connection

    # Writing ---------------------------------------------------------------------------------------------------

    def commit(self, hub: str, changes: Changes) -> None:
        """Store all changes of a call, or none. Raises StateUnusable if they cannot be stored."""
        with explained(self._path):
            try:
                self._database.execute("BEGIN IMMEDIATE")
                self._write(hub, changes)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def give_space_back(self) -> None:
        """Make the file a bit smaller if much of it is free. Takes about a tenth of a second."""
        with suppress(sqlite3.Error):  # nothing is lost if this fails
            if self._free_pages() > _FREE_PAGES:
                # execute() would free only one page: it does a single step of a statement without rows.
                self._database.executescript(f"PRAGMA incremental_vacuum({4 * _FREE_PAGES})")
                if self._free_pages() <= _FREE_PAGES:
                    self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _free_pages(self) -> int:
        return self._database.execute("PRAGMA freelist_count").fetchone()[0]

    def _write(self, hub: str, changes: Changes) -> None:
        self._each("DELETE FROM orchestrations WHERE key = ?", [(key,) for key in changes.removed_executions])
        self._each("DELETE FROM history WHERE key = ?", [(key,) for key in changes.removed_executions])
        self._each("DELETE FROM messages WHERE id = ?", [(number,) for number in changes.removed_messages])
        self._each("DELETE FROM activities WHERE id = ?", [(number,) for number in changes.removed_activities])
        self._each("DELETE FROM entities WHERE hub = ? AND id = ?", [(hub, name) for name in changes.removed_entities])
        self._each(_UPSERT_ORCHESTRATION, [_orchestration_row(hub, o) for o in changes.orchestrations.values()])
        self._each(
            "INSERT INTO history VALUES (?, ?, ?)",
            [
                (key, number, pb.HistoryChunk(events=events).SerializeToString())
                for key, number, events in changes.history
            ],
        )
        self._each(
            "INSERT INTO activities VALUES (?, ?, ?, ?)",
            [(a.id, hub, a.key, a.request.SerializeToString()) for a in changes.activities.values()],
        )
        self._each(
            "INSERT OR REPLACE INTO entities VALUES (?, ?, ?, ?, ?, ?)",
            [(hub, e.id, e.modified, e.lock, e.owner, e.state) for e in changes.entities.values()],
        )
        self._each(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)",
            [
                (m.id, hub, m.target, m.due, m.event.SerializeToString(), m.trace and m.trace.SerializeToString())
                for m in changes.messages.values()
            ],
        )
        self._each(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
            [(hub, request, answer, at) for request, answer, at in changes.answers],
        )

    def _each(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._database.executemany(statement, rows)

    def try_to_write(self) -> None:
        """Raise StateUnusable if nothing can be stored."""
        with explained(self._path):
            self._database.execute("INSERT OR REPLACE INTO answers VALUES ('', '', '', 0)")

    def forget_answers(self, before: int) -> None:
        """Remove the answers to requests from before that time."""
        with explained(self._path):
            self._database.execute("DELETE FROM answers WHERE at < ?", (before,))

    def close(self) -> None:
        """Write everything into the main file, and close it."""
        with suppress(sqlite3.Error):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._database.close()

    # Reading, for a hub ----------------------------------------------------------------------------------------

    def busy_hubs(self) -> list[str]:
        """The names of the hubs with unfinished work."""
        return [
            name
            for (name,) in self.rows(
                "SELECT hub FROM orchestrations WHERE completed IS NULL UNION SELECT hub FROM messages "
                "UNION SELECT hub FROM activities"
            )
        ]

    def last_id(self) -> int:
        """The highest number of all records."""
        ids = {"orchestrations": "key", "activities": "id", "messages": "id"}
        return max(self.rows(f"SELECT ifnull(max({id}), 0) FROM {table}")[0][0] for table, id in ids.items())

    def of(self, hub: str) -> "HubRecords":
        """The records of one hub."""
        return HubRecords(self, hub)

    def rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with explained(self._path):
            return self._database.execute(query, parameters).fetchall()

    # Reading, for clients --------------------------------------------------------------------------------------

    def history(self, hub: str, instance_id: str) -> tuple[str, list[pb.HistoryEvent]] | None:
        """An orchestration's current execution and its history; None if there is no such orchestration."""
        rows = self.rows("SELECT key FROM orchestrations WHERE hub = ? AND id = ?", (hub, instance_id))
        if not rows:
            return None
        key = rows[0][0]
        return f"{key:x}", _events(self.rows("SELECT events FROM history WHERE key = ? ORDER BY chunk", (key,)))

    def orchestrations(self, hub: str, query: pb.InstanceQuery) -> tuple[list[Orchestration], str | None]:
        """A page of matching orchestrations, the oldest first, and where the next page begins."""
        where, values = _status_and_time(hub, query.runtimeStatus, "created", query, "createdTimeFrom", "createdTimeTo")
        if query.instanceIdPrefix.value:
            where.append("substr(id, 1, ?) = ?")
            values += [len(query.instanceIdPrefix.value), query.instanceIdPrefix.value]
        columns = _ORCHESTRATION
        if not query.fetchInputsAndOutputs:
            columns = columns.replace("input, output", "NULL, NULL")
        rows, following = self._page(
            f"SELECT created, key, {columns} FROM orchestrations",
            where,
            values,
            ("created", "key"),
            query.continuationToken.value,
            query.maxInstanceCount,
        )
        return [_orchestration(row[2:]) for row in rows], following

    def finished_ids(self, hub: str, query: pb.ListInstanceIdsRequest) -> tuple[list[str], str | None]:
        """A page of finished orchestrations' ids in the order in which they finished, and where the next one begins."""
        where, values = _status_and_time(
            hub, query.runtimeStatus, "completed", query, "completedTimeFrom", "completedTimeTo"
        )
        rows, following = self._page(
            "SELECT completed, key, id FROM orchestrations",
            [*where, "completed IS NOT NULL"],
            values,
            ("completed", "key"),
            query.lastInstanceKey.value,
            query.pageSize or 100,
        )
        return [row[2] for row in rows], following

    def entities(self, hub: str, query: pb.EntityQuery) -> tuple[list[tuple[Entity, int]], str | None]:
        """A page of matching entities by id, with the sizes of their inboxes, and where the next page begins."""
        where: list[str] = ["hub = ?"]
        values: list[Any] = [hub]
        if query.instanceIdStartsWith.value:
            where.append("substr(id, 1, ?) = ?")
            values += [len(query.instanceIdStartsWith.value), query.instanceIdStartsWith.value]
        for name, comparison in (("lastModifiedFrom", ">="), ("lastModifiedTo", "<")):
            if query.HasField(name):
                where.append(f"modified {comparison} ?")
                values.append(micros(getattr(query, name)))
        if not query.includeTransient:
            where.append("state IS NOT NULL")
        columns = "id, modified, lock, owner, " + ("state" if query.includeState else "NULL")
        rows, following = self._page(
            f"SELECT {columns} FROM entities",
            where,
            values,
            ("id",),
            query.continuationToken.value,
            query.pageSize.value,
        )
        waiting = "SELECT count(*) FROM messages WHERE hub = ? AND target = ? AND due IS NULL"
        return [(_entity(row), self.rows(waiting, (hub, row[0]))[0][0]) for row in rows], following

    def _page(
        self, select: str, where: list[str], values: list[Any], order: tuple[str, ...], token: str, size: int
    ) -> tuple[list[tuple[Any, ...]], str | None]:
        """Rows in this order, after the token's; at most `size`, and no more than a client can receive."""
        if token:
            where = [*where, f"({', '.join(order)}) > ({', '.join('?' * len(order))})"]
            values = [*values, *_token_values(token, len(order))]
        sql = f"{select} WHERE {' AND '.join(where)} ORDER BY {', '.join(order)}"
        size = min(size, _PAGE_ROWS) if size > 0 else _PAGE_ROWS
        rows: list[tuple[Any, ...]] = []
        room = _PAGE_BYTES
        with explained(self._path):
            for row in self._database.execute(f"{sql} LIMIT ?", (*values, size + 1)):
                room -= sum(len(value) for value in row if isinstance(value, str | bytes)) + 100
                if len(rows) == size or (rows and room < 0):
                    return rows, json.dumps(rows[-1][: len(order)])
                rows.append(row)
        return rows, None


class HubRecords:
    """The stored records of one hub: see `Records`."""

    def __init__(self, store: Store, hub: str) -> None:
        self._rows = store.rows
        self._hub = hub

    def unfinished(self) -> Iterator[Orchestration]:
        select = f"SELECT {_ORCHESTRATION} FROM orchestrations WHERE hub = ? AND completed IS NULL ORDER BY key"
        return map(_orchestration, self._rows(select, (self._hub,)))

    def activities(self) -> Iterator[Activity]:
        for number, key, request in self._rows(
            "SELECT id, key, request FROM activities WHERE hub = ? ORDER BY id", (self._hub,)
        ):
            yield Activity(number, key, _parsed(pb.ActivityRequest, request))

    def messages(self) -> Iterator[Message]:
        for number, target, due, event, trace in self._rows(
            "SELECT id, target, due, event, trace FROM messages WHERE hub = ? ORDER BY id", (self._hub,)
        ):
            yield Message(number, target, _parsed(pb.HistoryEvent, event), _parsed(pb.TraceContext, trace), due)

    def locked_entities(self) -> Iterator[Entity]:
        return map(
            _entity,
            self._rows(
                "SELECT id, modified, lock, owner, state FROM entities WHERE hub = ? AND lock != ''", (self._hub,)
            ),
        )

    def orchestration(self, instance_id: str) -> Orchestration | None:
        select = f"SELECT {_ORCHESTRATION} FROM orchestrations WHERE hub = ? AND id = ?"
        rows = self._rows(select, (self._hub, instance_id))
        return _orchestration(rows[0]) if rows else None

    def entity(self, entity_id: str) -> Entity | None:
        select = "SELECT id, modified, lock, owner, state FROM entities WHERE hub = ? AND id = ?"
        rows = self._rows(select, (self._hub, entity_id))
        return _entity(rows[0]) if rows else None

    def history(self, key: int) -> list[pb.HistoryEvent]:
        return _events(self._rows("SELECT events FROM history WHERE key = ? ORDER BY chunk", (key,)))

    def children(self, key: int) -> list[str]:
        return [row[0] for row in self._rows("SELECT id FROM orchestrations WHERE parent_key = ?", (key,))]

    def finished(self, purge: pb.PurgeInstanceFilter, limit: int) -> list[str]:
        where, values = _status_and_time(
            self._hub, purge.runtimeStatus, "created", purge, "createdTimeFrom", "createdTimeTo"
        )
        sql = f"SELECT id FROM orchestrations WHERE {' AND '.join(where)} AND completed IS NOT NULL LIMIT ?"
        return [row[0] for row in self._rows(sql, (*values, limit))]

    def answer(self, request_id: str) -> bytes | None:
        rows = self._rows("SELECT answer FROM answers WHERE hub = ? AND request = ?", (self._hub, request_id))
        return rows[0][0] if rows else None


_PAGE_ROWS = 1000
_FREE_PAGES = 256  # 1 MB stays free in the file, to be used again
_CHANGING = (
    "status", "created", "updated", "completed", "parent_key", "parent_task", "chunks", "custom_status", "failure",
    "own_trace", "output",
)  # fmt: skip
_UPSERT_ORCHESTRATION = (
    f"INSERT INTO orchestrations (hub, {_ORCHESTRATION}) VALUES ({', '.join('?' * 21)}) "
    f"ON CONFLICT (key) DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in _CHANGING)}"
)


def _orchestration_row(hub: str, o: Orchestration) -> tuple[Any, ...]:
    blobs = (
        blob.SerializeToString() if blob is not None else None for blob in (o.failure, o.caller_trace, o.own_trace)
    )
    return (
        hub, o.key, o.id, o.name, o.version, o.status, o.created, o.updated, o.completed, o.start_at,
        o.parent, o.parent_key, o.parent_task, o.chunks, json.dumps(o.tags), o.custom_status, *blobs, o.input, o.output,
    )  # fmt: skip


def _orchestration(row: tuple[Any, ...]) -> Orchestration:
    (
        key, name_id, name, version, status, created, updated, completed, start_at, parent, parent_key, parent_task,
        chunks, tags, custom_status, failure, caller_trace, own_trace, given, output,
    ) = row  # fmt: skip
    return Orchestration(
        key,
        name_id,
        name,
        version,
        status,
        created,
        updated,
        completed,
        start_at,
        json.loads(tags),
        given,
        output,
        custom_status,
        _parsed(pb.TaskFailureDetails, failure),
        _parsed(pb.TraceContext, caller_trace),
        _parsed(pb.OrchestrationTraceContext, own_trace),
        parent,
        parent_key,
        parent_task,
        chunks=chunks,
    )


def _entity(row: tuple[Any, ...]) -> Entity:
    entity_id, modified, lock, owner, state = row
    return Entity(entity_id, modified, state, lock, owner)


def _events(rows: Iterable[tuple[bytes]]) -> list[pb.HistoryEvent]:
    return [event for (chunk,) in rows for event in _parsed(pb.HistoryChunk, chunk).events]


def _parsed(kind: Any, stored: bytes | None) -> Any:
    """A stored message, or None. Raises StateUnusable if it is damaged."""
    try:
        return None if stored is None else kind.FromString(stored)
    except (DecodeError, TypeError) as error:
        raise StateUnusable(f"The state file: {_MEANINGS['malformed']}") from error


def _status_and_time(
    hub: str, statuses: Iterable[int], column: str, query: Any, begin: str, end: str
) -> tuple[list[str], list[Any]]:
    """The conditions that all queries have, and their values."""
    where: list[str] = ["hub = ?"]
    values: list[Any] = [hub]
    if wanted := list(statuses):
        where.append(f"status IN ({', '.join('?' * len(wanted))})")
        values += wanted
    for name, comparison in ((begin, ">="), (end, "<")):
        if query.HasField(name):
            where.append(f"{column} {comparison} ?")
            values.append(micros(getattr(query, name)))
    return where, values


def _token_values(token: str, count: int) -> list[Any]:
    """Where a page begins, from the previous page's token. Raises Refused if the token is invalid."""
    with suppress(ValueError, RecursionError):
        values = json.loads(token)
        if isinstance(values, list) and len(values) == count and all(map(_is_storable, values)):
            return values
    raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "The continuation token is not from this scheduler.")


def _is_storable(value: Any) -> bool:
    """Whether SQLite can compare a column with it."""
    if isinstance(value, str):
        value.encode()  # raises ValueError for half a surrogate pair
        return True
    return isinstance(value, int) and abs(value) < 2**63


def _make_private(path: Path) -> None:
    """Create the file so that only its owner can read it; SQLite gives its other files the same permissions."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn errors of SQLite and the system into one line that says how to fix them."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = str(error)
        for words, meaning in _MEANINGS.items():
            if words in text:
                raise StateUnusable(f"{path or 'The state in memory'}: {meaning}") from error
        raise StateUnusable(f"{path or 'The state in memory'} cannot be used: {text}.") from error


_MEANINGS = {
    "is full": "the disk is full, nothing more can be stored. Make room; what is stored is kept.",
    "disk I/O error": "the disk is full or broken, nothing more can be stored. Make room; what is stored is kept.",
    "readonly": "it cannot be written. Change the permissions of the file and its folder, or choose another file.",
    "not a database": "it is damaged, or not a file of this scheduler. Move it away, or choose another file.",
    "malformed": "it is damaged. Move it away to start with an empty one, or restore a copy.",
    "unable to open": "it cannot be opened. Does its folder exist, and may you read and write there?",
    "Permission denied": "it may not be read or written. Change the permissions, or choose another file.",
    "Read-only file system": "it cannot be written: the file system is read-only. Choose another file.",
    "No such file": "its folder does not exist.",
    "Not a directory": "its folder is a file.",
    "No space left": "the disk is full. Make room, or choose another file.",
    "File too large": "the disk is full. Make room, or choose another file.",
    "Could not decode": "it is damaged. Move it away to start with an empty one, or restore a copy.",
    "Is a directory": "it is a folder. Choose a file.",
    "locked": "another program is using it. Stop that one, or choose another file.",
}
