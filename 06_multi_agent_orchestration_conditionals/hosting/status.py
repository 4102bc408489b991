"""The custom status of an orchestration: its first line says what happens, what the sample shows is below it."""

from typing import Any
from weakref import WeakKeyDictionary

from durabletask.client import OrchestrationState
from durabletask.task import OrchestrationContext

_lines: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()  # of each orchestration: what each agent does


def say(context: OrchestrationContext, agent_name: str, line: str | None, show: str) -> None:
    """Set the custom status from what this agent, and others that are asked at the same time, do now; None: nothing."""
    lines = _lines.setdefault(context, {})
    lines.pop(agent_name, None)
    if line:
        lines[agent_name] = line
    first = " · ".join(lines.values()) or f"{agent_name} has answered"
    context.set_custom_status(f"{first}\n{show}" if show else first)


def headline(state: OrchestrationState) -> str:
    """What the orchestration does: the first line of its custom status."""
    return str(state.get_custom_status() or "").partition("\n")[0]


def shown(state: OrchestrationState) -> str:
    """What the orchestration shows: its custom status below the first line."""
    return str(state.get_custom_status() or "").partition("\n")[2]
