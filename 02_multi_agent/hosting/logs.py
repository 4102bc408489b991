"""Logs on stderr: by default one line for what a person should know, and the traceback of an error in your own code."""

import logging
import re
import sys
import textwrap

from .program import UsageError, setting

log = logging.getLogger("sample")


class LoggedError(Exception):
    """An error that was logged where it happened; the SDKs log it again, with a traceback."""


def configure_logging() -> None:
    """Log at LOG_LEVEL; without it, leave out what the SDKs say a second time. Raises UsageError."""
    level = setting("LOG_LEVEL").upper()
    try:
        logging.basicConfig(level=level or "WARNING", format="%(levelname)s %(name)s: %(message)s")
    except ValueError:
        raise UsageError(f"LOG_LEVEL={level} is not a level: use DEBUG, INFO, WARNING or ERROR.") from None
    if not level:
        for handler in logging.getLogger().handlers:
            handler.addFilter(_worth_reading)


def _worth_reading(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if record.name.startswith("azure") or (record.exc_info and isinstance(record.exc_info[1], LoggedError)):
        return False
    if record.name == "asyncio" and message.startswith("Unclosed"):  # connections to the model, at the program's end
        return False
    if record.name.startswith("agent_framework"):
        if re.fullmatch(r"Function \S+ failed \(\w+\)\.", message):
            record.exc_info = sys.exc_info()  # the agent framework leaves out what went wrong in a tool
        return "falling back to run()" not in message  # the second attempt will say why it failed
    if record.name.startswith("durabletask"):
        record.msg, record.args, record.exc_info = textwrap.shorten(message, 300), None, None
        lost = "UNAVAILABLE|DEADLINE_EXCEEDED|Connection failed, retrying|Timed out waiting for work|Stream reader"
        return record.levelno != logging.WARNING or not re.search(lost, message)  # calls.py says it in one line
    return True
