"""A program's edges: settings come in, errors go out as one line and an exit code."""

import io
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import grpc
from azure.core.exceptions import ClientAuthenticationError

from .terminal import clean, printable


class UsageError(Exception):
    """A setting or an argument is wrong; the message says how to fix it. Exit code 2."""


class AgentError(Exception):
    """An agent or orchestration failed, or took too long; the message says why. Exit code 1."""


def setting(name: str, default: str = "") -> str:
    """An environment variable; an empty one counts as unset."""
    return os.environ.get(name, "").strip() or default


def run(main: Callable[[], None]) -> NoReturn:
    """Read `.env`, run `main`, and turn expected errors into one line on stderr and an exit code."""
    from .env_files import load_env_files
    from .logs import configure_logging

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):  # somebody has read from it before
                stream.reconfigure(errors="replace")
    sys.argv[1:] = map(clean, sys.argv[1:])
    code = 0
    try:
        load_env_files(Path(sys.argv[0]).resolve().parent)
        configure_logging()
        main()
    except (UsageError, AgentError, grpc.RpcError, ClientAuthenticationError) as error:
        print(printable(explain(error)), file=sys.stderr)
        code = 1 if isinstance(error, AgentError) else 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
    except Exception:  # a defect
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has left, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(code)  # a worker's thread that still waits for a model would keep the process alive
    sys.exit(code)


def without_password(url: str) -> str:
    """The address as it may be printed and stored."""
    return re.sub(r"//[^/]*@", "//", url)


def explain(error: Exception) -> str:
    """What an expected error means to the person who sees it."""
    from .endpoint import scheduler_address

    if isinstance(error, ClientAuthenticationError):
        return f"No Azure identity: run 'az login', or set a key. {error.message.splitlines()[0]}"
    if not isinstance(error, grpc.RpcError):
        return str(error)
    code, details = (error.code(), error.details()) if isinstance(error, grpc.Call) else (None, str(error))
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        endpoint = scheduler_address()
        tls = " (https:// is for Azure; a local one is http://)" if endpoint.startswith("https:") else ""
        return (
            f"The scheduler at {endpoint} does not answer{tls}. Set ENDPOINT, or start one: 'python3 run.py up' or "
            "'docker compose up -d' in the collection's folder."
        )
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return (
            f"The scheduler refuses this identity: {details}. Run 'az login', and give it the role "
            f"'Durable Task Data Contributor' on task hub '{setting('TASKHUB', 'default')}'."
        )
    return f"The scheduler refuses the call ({code.name if code else 'no status'}): {details}"
