"""The local Redis: a real redis-server if there is one, else fakeredis."""

import re
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import Process, Start, clean_environment, eventually

from local_services import redis_server

REAL = [sys.executable, "-m", "local_services.redis_server", "--port"]
FAKE = [
    sys.executable,
    "-c",
    "from local_services import redis_server as s; s.redis_program = lambda: None; s.main()",
    "--port",
]


def instead_of_redis(folder: Path, script: str) -> list[str]:
    """The command that starts the service with a script instead of redis-server."""
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return [part.replace("None", repr(str(program))) for part in FAKE]


# Each with arguments, so that it would do something.
REFUSED = """
    CONFIG SET dir / | CONFIG GET dir | SAVE | BGSAVE | BGREWRITEAOF | EVAL return 0 | EVALSHA 0 0 | SCRIPT FLUSH
    FUNCTION FLUSH | FCALL f 0 | MODULE LOAD /tmp/a.so | DEBUG SEGFAULT | SLAVEOF 127.0.0.1 1 | REPLICAOF 127.0.0.1 1
    MIGRATE 127.0.0.1 1 a 0 1 | RESTORE a 0 a | SHUTDOWN NOSAVE | ACL SETUSER a on | ACL SAVE | MONITOR | SYNC
    PSYNC a 1 | FLUSHALL | FLUSHDB | SWAPDB 0 1 | CLIENT KILL 127.0.0.1:1 | CLIENT PAUSE 10000
"""
USED = "KEYS * | SCAN 0 | DBSIZE | XLEN stream | XRANGE stream - + | TTL stream | TYPE stream | DEL stream"


@pytest.fixture(params=["on the PATH", "wheel", "fake"])
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of the service with each kind of Redis: a real one, an older real one, and fakeredis."""
    if request.param == "fake":
        return FAKE
    if request.param == "wheel":
        monkeypatch.setattr(redis_server.shutil, "which", lambda _: None)
    if not (program := redis_server.redis_program()):
        pytest.skip("there is none")
    return [part.replace("None", repr(program)) for part in FAKE]


def address_of(server: Process) -> str:
    return server.wait_for(r"redis ready: (redis://127\.0\.0\.1:\d+)")[1]


def nobody_listens(address: str) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


def test_streams_work(start: Start, command: list[str]) -> None:
    server = start(*command, "0")
    with redis.Redis.from_url(address_of(server), decode_responses=True) as client:
        api: Any = client  # redis-py's types do not distinguish synchronous and asynchronous answers
        entry = api.xadd("stream", {"text": "first"})
        api.expire("stream", 60)
        assert api.xread({"stream": "0"}) == [["stream", [(entry, {"text": "first"})]]]
        assert not api.xread({"stream": "$"}, block=20)
        assert 0 < api.ttl("stream") <= 60
        for words in USED.split("|"):
            api.execute_command(*words.split())
    assert ("fakeredis" in server.errors) == (command is FAKE)


def test_commands_that_reach_further_than_its_memory_are_refused(start: Start, command: list[str]) -> None:
    address = address_of(start(*command, "0"))
    for words in re.split(r"\||\n", REFUSED.strip()):
        with (
            redis.Redis.from_url(address) as client,
            pytest.raises(redis.ResponseError, match=r"(?i)no permissions|unknown|not allowed"),
        ):
            client.execute_command(*words.split())
    with redis.Redis.from_url(address) as client:
        assert client.ping()


@pytest.mark.parametrize("command", [REAL, FAKE], ids=["real", "fake"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_on_a_signal_with_a_client_connected(start: Start, command: list[str], number: int) -> None:
    server = start(*command, "0")
    address = address_of(server)
    with redis.Redis.from_url(address) as client:
        client.ping()
        server.signal(number)
        assert server.wait() == 0
    assert nobody_listens(address)


def test_ends_with_its_supervisor(start: Start) -> None:
    server = start(*REAL, "0", "--supervised")
    address = address_of(server)
    assert server.popen.stdin
    server.popen.stdin.close()
    assert server.wait() == 0
    assert nobody_listens(address)


@pytest.mark.parametrize("command", [REAL, FAKE], ids=["real", "fake"])
def test_a_taken_port_is_named(start: Start, command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start(*command, str(port))
        assert server.wait() == 2
        assert f"Port {port} is in use" in server.errors


def test_says_when_redis_server_breaks_down(start: Start, tmp_path: Path) -> None:
    server = start(*instead_of_redis(tmp_path, "echo Ready to accept connections; exit 3"), "0")
    assert server.wait() == 1
    assert "crashed (exit code 3)" in server.errors


def test_says_why_redis_server_does_not_start(start: Start, tmp_path: Path) -> None:
    server = start(*instead_of_redis(tmp_path, "echo no room for it; exit 1"), "0")
    assert server.wait() == 2
    assert server.errors == "redis-server does not start: no room for it\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_has_a_directory_of_its_own_and_leaves_nothing_behind(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "dump.rdb").write_bytes(b"of somebody else")
    server = start(*REAL, "0", env=clean_environment(TMPDIR=str(tmp_path)))
    address = address_of(server)
    (directory,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    with redis.Redis.from_url(address) as client:
        client.set("key", "value")
    server.signal(number)
    assert server.wait() == (0 if number == signal.SIGTERM else -number)
    eventually(lambda: not directory.exists(), "the directory is removed")
    assert nobody_listens(address)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.rdb"]
