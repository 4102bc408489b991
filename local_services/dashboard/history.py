"""An orchestration's history: as steps for the timeline, as a sequence diagram, and event by event."""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import durabletask.history as h
from durabletask.client import OrchestrationStatus
from durabletask.entities import EntityInstanceId

from local_services.dashboard.conversation import PREFIX, run_request, run_response
from local_services.dashboard.words import aware, duration, failure_text, line, pretty

Kind = Literal["agent", "activity", "orchestration", "entity", "timer", "event"]
SEQUENCE_LIMIT = 40  # steps; a longer diagram is not readable, and takes the browser seconds
LABEL_WIDTH = 32  # characters in a line of the diagram


@dataclass(frozen=True)
class Step:
    """Something that the orchestration did or waited for."""

    kind: Kind
    name: str
    start: datetime
    end: datetime | None = None  # None: not finished
    asked: str = ""
    answered: str = ""
    failed: bool = False
    link: str = ""  # the agent's session or the sub-orchestration, by its id in the scheduler
    abandoned: bool = False  # not finished when the orchestration ended

    def seconds(self, now: datetime) -> float:
        """How long it took, or how long it has run so far."""
        return max(0.0, ((self.end or now) - self.start).total_seconds())


def steps(events: Iterable[h.HistoryEvent], waiting_for: str = "") -> list[Step]:
    """All steps, in the order in which they began.

    Args:
        waiting_for: what an unfinished orchestration without unfinished steps waits for; empty if it does not wait.
    """
    open_steps: dict[Any, Step] = {}
    done: list[Step] = []
    idle_since = last = ended = None
    for event in events:
        time = event.timestamp
        begun = _begun(event)
        if begun:
            open_steps[begun[0]] = begun[1]
        elif (key := _key_of_end(event)) in open_steps:
            done.append(_finished(open_steps.pop(key), event))
        match event:
            case h.OrchestratorStartedEvent():
                idle_since = last  # since the previous step, because DTS does not record its end
            case h.EventRaisedEvent(name=name, input=payload):
                done.append(Step("event", name, min(idle_since or time, time), time, answered=pretty(payload)))
            case h.ExecutionCompletedEvent() | h.ExecutionTerminatedEvent():
                ended = time
        last = time
    over = [replace(step, end=ended, abandoned=True) if ended else step for step in open_steps.values()]
    busy = any(step.kind != "timer" for step in over)
    if waiting_for and last and not ended and not busy:
        over.append(Step("event", waiting_for, last))
    return sorted(done + over, key=lambda step: step.start)


def _begun(event: h.HistoryEvent) -> tuple[Any, Step] | None:
    """The step that begins with this event, and the key that its end event will have."""
    time = event.timestamp
    match event:
        case h.TaskScheduledEvent(event_id=number, name=name, input=payload):
            return number, Step("activity", name, time, asked=pretty(payload))
        case h.SubOrchestrationInstanceCreatedEvent(event_id=number, name=name, input=payload, instance_id=child):
            return number, Step("orchestration", name, time, asked=pretty(payload), link=child)
        case h.TimerCreatedEvent(event_id=number, fire_at=fire_at):
            length = max(0.0, (aware(fire_at) - time).total_seconds())
            return number, Step("timer", f"timer of {duration(round(length, 1))}", time)
        case h.EntityOperationCalledEvent(request_id=request, operation=operation, input=payload):
            target = event.target_instance_id or ""
            entity = _entity_name(target)
            if entity.startswith(PREFIX):
                name = entity.removeprefix(PREFIX)
                return request, Step("agent", name, time, asked=run_request(payload), link=target)
            return request, Step("entity", f"{entity}.{operation}", time, asked=pretty(payload))
    return None


def _key_of_end(event: h.HistoryEvent) -> Any:
    match event:
        case h.TimerFiredEvent(timer_id=number):
            return number
        case h.EntityOperationCompletedEvent(request_id=key) | h.EntityOperationFailedEvent(request_id=key):
            return key
        case (
            h.TaskCompletedEvent(task_scheduled_id=number)
            | h.TaskFailedEvent(task_scheduled_id=number)
            | h.SubOrchestrationInstanceCompletedEvent(task_scheduled_id=number)
            | h.SubOrchestrationInstanceFailedEvent(task_scheduled_id=number)
        ):
            return number
    return None


def _finished(step: Step, event: h.HistoryEvent) -> Step:
    step = replace(step, end=max(event.timestamp, step.start))
    match event:
        case h.EntityOperationCompletedEvent(output=output) if step.kind == "agent":
            author, text, failed = run_response(output)
            return replace(step, name=author or step.name, answered=text, failed=failed)
        case h.EntityOperationCompletedEvent(output=output):
            return replace(step, answered=pretty(output))
        case h.TaskCompletedEvent(result=result) | h.SubOrchestrationInstanceCompletedEvent(result=result):
            return replace(step, answered=pretty(result))
        case h.TimerFiredEvent():
            return step
    return replace(step, answered=failure_text(getattr(event, "failure_details", None)), failed=True)


def _entity_name(target: str) -> str:
    try:
        return EntityInstanceId.parse(target).entity
    except ValueError:
        return target


# Sequence diagram ---------------------------------------------------------------------------------------------------


def sequence_diagram(all_steps: list[Step]) -> str:
    """The steps as a Mermaid sequence diagram; empty if there are none to show."""
    shown = [step for step in all_steps if step.kind != "timer"][:SEQUENCE_LIMIT]
    if not shown:
        return ""
    names = dict.fromkeys((step.kind, _participant(step)) for step in shown)
    ids = {key: f"P{number}" for number, key in enumerate(names)}
    lines = ["participant O as orchestrator"]
    lines += [
        f"{'actor' if kind == 'event' else 'participant'} {ids[kind, name]} as {_escaped(name)}" for kind, name in names
    ]
    messages: list[tuple[datetime, str]] = []
    for step in shown:
        other = ids[step.kind, _participant(step)]
        if step.kind == "event":
            if step.end:
                messages.append((step.end, f"{other}->>O: {_message(step.answered or step.name)}"))
            continue
        messages.append((step.start, f"O->>{other}: {_message(step.asked or step.kind)}"))
        if step.end and not step.abandoned:
            arrow = "--x" if step.failed else "-->>"
            took = duration(step.seconds(step.end))
            messages.append((step.end, f"{other}{arrow}O: {_message(step.answered or 'done')} ({took})"))
    lines += [text for _, text in sorted(messages, key=lambda message: message[0])]
    return "\n  ".join(["sequenceDiagram", *lines])


def _participant(step: Step) -> str:
    return f"{step.name} (event)" if step.kind == "event" else step.name


def _escaped(text: str, harmless: str = "") -> str:
    """The text in up to two lines, escaped for Mermaid.

    Every character that might be syntax is written as its number. The lines are broken before that, because Mermaid
    would break them in the middle of a number.
    """
    lines = textwrap.wrap(line(text), LABEL_WIDTH, max_lines=2, placeholder="…") or [" "]
    kept = set(" .,?!()'’“”…-_" + harmless)
    return "<br/>".join("".join(c if c.isalnum() or c in kept else f"#{ord(c)};" for c in one) for one in lines)


def _message(text: str) -> str:
    """The text of an arrow. Fewer characters are escaped than in a name: Mermaid reserves space for the digits."""
    return _escaped(text, '"/{}[]=:@*+')


# Event by event -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One event of the history, as it is shown."""

    time: datetime
    title: str
    about: str
    payloads: list[tuple[str, str]]  # description, and the payload as it is stored


_PAYLOADS = ("input", "result", "output", "data")


def lines(events: Iterable[h.HistoryEvent]) -> list[Line]:
    """The history, event by event."""
    return [_line(event) for event in events]


def _line(event: h.HistoryEvent) -> Line:
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(event).__name__.removesuffix("Event")).capitalize()
    payloads = [(name, str(value)) for name in _PAYLOADS if (value := getattr(event, name, None))]
    if details := failure_text(getattr(event, "failure_details", None)):
        payloads.append(("failure", details))
    return Line(event.timestamp, words, _about(event), payloads)


def _about(event: h.HistoryEvent) -> str:
    match event:
        case h.ExecutionCompletedEvent(orchestration_status=status):
            return OrchestrationStatus(status).name
        case h.TimerCreatedEvent(fire_at=time) | h.TimerFiredEvent(fire_at=time):
            return f"{aware(time).astimezone():%H:%M:%S}"
        case h.EntityOperationCalledEvent(operation=operation) | h.EntityOperationSignaledEvent(operation=operation):
            return f"{operation} → {event.target_instance_id}"
    return str(getattr(event, "name", None) or "")
