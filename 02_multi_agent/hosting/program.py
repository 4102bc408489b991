"""A program's edges: settings come in, errors go out as one line and an exit code."""

import io
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import grpc
from azure.core.exceptions import ClientAuthenticationError
from dotenv import dotenv_values

from .terminal import clean, printable

MODELS = {  # the setting that selects a kind of model -> the other settings of that kind
    "AZURE_OPENAI_ENDPOINT": ("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME", "AZURE_OPENAI_API_KEY"),
    "OPENAI_API_KEY": ("OPENAI_MODEL", "OPENAI_BASE_URL"),
}


class UsageError(Exception):
    """A setting or an argument is wrong; the message says how to fix it. Exit code 2."""


class AgentError(Exception):
    """An agent or orchestration failed, or took too long; the message says why. Exit code 1."""


def setting(name: str, default: str = "") -> str:
    """An environment variable; an empty one counts as unset."""
    return os.environ.get(name, "").strip() or default


def run(main: Callable[[], None]) -> NoReturn:
    """Read `.env`, run `main`, and turn expected errors into one line on stderr and an exit code."""
    from .connection import explain
    from .logs import configure_logging

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.argv[1:] = map(clean, sys.argv[1:])
    code = 0
    try:
        _load_env_files(Path(sys.argv[0]).resolve().parent)
        configure_logging()
        main()
    except (UsageError, AgentError, grpc.RpcError, ClientAuthenticationError) as error:
        print(printable(explain(error)), file=sys.stderr)
        code = 1 if isinstance(error, AgentError) else 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 141
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has left, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(code)  # a worker's thread that still waits for a model would keep the process alive
    sys.exit(code)


def _load_env_files(folder: Path) -> None:
    """Add what `.env` in the program's folder, or in the one above, sets. The environment wins.

    A model that the environment selects wins as a whole: the settings of the other kind are not read from a file.
    """
    settings = {**dotenv_values(folder.parent / ".env"), **dotenv_values(folder / ".env")}
    selected = [kind for kind in MODELS if setting(kind)]
    hidden = {name for kind, others in MODELS.items() if kind not in selected for name in (kind, *others)}
    for name, value in settings.items():
        if not (selected and name in hidden):
            os.environ.setdefault(name, value or "")


def without_password(url: str) -> str:
    """The address as it may be printed and stored."""
    return re.sub(r"//[^/]*@", "//", url)
