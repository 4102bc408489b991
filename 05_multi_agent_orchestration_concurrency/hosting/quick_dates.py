"""Reads the dates in a stored conversation quickly: they take a third of the time of a 200th turn otherwise.

The package reads each with a parser for any form of date. This file goes when the package stops that.
"""

from datetime import datetime
from types import SimpleNamespace
from typing import Any

from agent_framework_durabletask import _durable_agent_state

_package: Any = _durable_agent_state
_any_form = _package.date_parser.parse


def _parse(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # such as the Z for UTC, before Python 3.11
        return _any_form(text)


def read_dates_quickly() -> None:
    """From now on, in this process."""
    _package.date_parser = SimpleNamespace(parse=_parse)
