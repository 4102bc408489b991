"""The custom status of an orchestration: its first line says what happens, what the sample shows is below it."""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from durabletask.client import OrchestrationState
from durabletask.task import OrchestrationContext


@dataclass
class _Status:
    agents: dict[str, str] = field(default_factory=dict)  # what each agent that is asked now does
    first_line: str = ""
    shown: str = ""


_statuses: WeakKeyDictionary[Any, _Status] = WeakKeyDictionary()  # of each orchestration


def say(context: OrchestrationContext, agent_name: str, line: str | None, text: str = "") -> None:
    """Set the first line from what this agent, and others that are asked at the same time, do now; None: nothing.

    What is shown below it stays, unless there is another text.
    """
    status = _statuses.setdefault(context, _Status())
    status.agents.pop(agent_name, None)
    if line:
        status.agents[agent_name] = " ".join(line.split())
    status.first_line = " · ".join(status.agents.values()) or f"{agent_name} has answered"
    show(context, text or status.shown)


def show(context: OrchestrationContext, text: str) -> None:
    """Show this text below the first line, from now on."""
    status = _statuses.setdefault(context, _Status())
    status.shown = text
    context.set_custom_status(f"{status.first_line}\n{text}" if text else status.first_line)


def headline(state: OrchestrationState) -> str:
    """What the orchestration does: the first line of its custom status."""
    return str(state.get_custom_status() or "").partition("\n")[0]


def shown(state: OrchestrationState) -> str:
    """What the orchestration shows: its custom status below the first line."""
    return str(state.get_custom_status() or "").partition("\n")[2]
