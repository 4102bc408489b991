"""The page of an orchestration: data, timeline, sequence diagram, history, and actions."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from durabletask.history import HistoryEvent
from nicegui import ui

from local_services.dashboard import frame, history, words
from local_services.dashboard.actions import Actions
from local_services.dashboard.approval import EVENT, waiting
from local_services.dashboard.frame import Moment, Section, Text, tag
from local_services.dashboard.history import Line, Step
from local_services.dashboard.review import Review
from local_services.dashboard.scheduler import Details, Hub, default_hub

SHOWN_STEPS = 150  # in the timeline
SHOWN_EVENTS = 200  # of the history, at first and with each click on "more"
READ_AGAIN = timedelta(seconds=5)  # for the history of an unfinished orchestration, even if nothing seems to change
PENDING = "No worker has started it yet. Is its worker running?"
FONT = {"FontFamily": "system-ui, sans-serif", "FontSize": 13}
MERMAID = {
    "securityLevel": "strict",
    "sequence": {
        "mirrorActors": False,
        "useMaxWidth": False,
        "width": 180,
        "actorMargin": 60,
        **{f"{what}{key}": value for what in ("actor", "message") for key, value in FONT.items()},
    },
}


def orchestration_page(hub: str = "", id: str = "") -> None:
    """The page; the query parameters select the instance."""
    with frame.page(hub or default_hub()) as task_hub:
        frame.keep_up_to_date(OrchestrationPage(task_hub, id).refresh)


class OrchestrationPage:
    """The content of the page."""

    def __init__(self, hub: Hub, instance_id: str) -> None:
        self.hub = hub
        self.id = instance_id
        self._details: Details | None = None
        self._events: list[HistoryEvent] = []
        self._read_at = words.now() - READ_AGAIN
        self._notice = Section(frame.notice)
        self._head = Section(self._draw_head, "head")
        self._review = Review(hub)
        self._failure = Section(self._draw_failure)
        self._timeline = Timeline(hub.name)
        self._diagram = Section(self._draw_diagram)
        self._payloads = Section(self._draw_payloads)
        self._history = History()

    async def refresh(self) -> None:
        """Read what has changed, and show it. Raises SchedulerProblem."""
        details = await frame.reading(self.hub.orchestration, self.id)
        if details is None:
            stays = " This page shows its last known state." if self._details else ""
            self._notice.show(f"There is no such orchestration in this task hub; it may have been purged.{stays}")
            return
        self._notice.show(PENDING if details.status == "PENDING" else None)
        if details != self._details or (details.is_active and words.now() - self._read_at > READ_AGAIN):
            self._events = await frame.reading(self.hub.history, self.id)
            self._read_at = words.now()
        self._details = details
        self._show(details)

    def _show(self, details: Details) -> None:
        waits_for = EVENT if waiting(details.raw_custom_status) else "an event" if details.status == "RUNNING" else ""
        steps = history.steps(self._events, waits_for)
        self._head.show((details.name, details.status, None if details.is_active else details.updated))
        self._review.show(details)
        self._failure.show(details.failure or None)
        self._timeline.show(steps, details)
        self._diagram.show(history.sequence_diagram(steps) or None)
        self._payloads.show((details.input, details.output, details.raw_custom_status))
        self._history.show(history.lines(self._events))

    def _draw_head(self, _: object) -> None:
        assert self._details
        details = self._details
        Text(details.name, element="h1")
        with tag("div", "facts"):
            frame.status_badge(details.status)
            with tag("span", "id"):
                Text(details.id, element="span")
                frame.copy_button(details.id, "Copy the id")
            with tag("span"):
                Text("started ", element="span")
                Moment(details.started)
            if not details.is_active:
                took = words.duration((details.updated - details.started).total_seconds())
                Text(f"took {took}", element="span")
        Actions(self.hub, details)

    def _draw_failure(self, failure: str) -> None:
        with tag("div", "card failure"):
            with tag("div", "payload-head"):
                Text("Failure", element="h3")
                frame.copy_button(failure, "Copy the failure")
            frame.folded(failure, "code")

    def _draw_diagram(self, diagram: str) -> None:
        frame.heading("Sequence")
        with tag("div", "card diagram").props('tabindex=0 role="img" aria-label="Sequence diagram"'):
            ui.mermaid(diagram, config=MERMAID)

    def _draw_payloads(self, payloads: tuple[str | None, str | None, str | None]) -> None:
        frame.heading("Data")
        with tag("div", "payloads"):
            for title, raw in zip(("Input", "Output", "Custom status"), payloads, strict=True):
                frame.payload(title, raw)


@dataclass
class _Bar:
    """A step's bar and the text of its duration, which are updated until the step ends."""

    step: Step
    bar: ui.element
    length: Text


class Timeline:
    """The steps as bars over time, one below the other. The bars of running steps grow."""

    def __init__(self, hub_name: str) -> None:
        self._hub_name = hub_name
        self._bars: list[_Bar] = []
        self._section = Section(self._draw)
        self._end_label: Text | None = None

    def show(self, steps: list[Step], details: Details) -> None:
        """Show these steps."""
        self._section.show(steps or None)
        if not steps:
            self._bars = []  # restarted or purged: they were removed with the section
            return
        begin = min([details.started, *(step.start for step in steps)])
        end = words.now() if details.is_active else max([details.updated, *(step.end or step.start for step in steps)])
        self._place(begin, end)

    def _draw(self, steps: list[Step]) -> None:
        frame.heading("Timeline")
        self._bars = []
        with tag("div", "card timeline"):
            for step in steps[:SHOWN_STEPS]:
                self._draw_step(step)
            with tag("div", "axis"):
                Text("0", element="span")
                self._end_label = Text("", element="span")
        if len(steps) > SHOWN_STEPS:
            Text(f"{len(steps) - SHOWN_STEPS:,} more steps are in the history.", "faint")

    def _draw_step(self, step: Step) -> None:
        with tag("div", "step"):
            with tag("div", "what"):
                if step.link:
                    is_agent = step.kind == "agent"
                    address = frame.entity_url if is_agent else frame.orchestration_url
                    frame.link(step.name, address(self._hub_name, step.link))
                else:
                    Text(step.name, element="span")
                Text("waits for event" if step.kind == "event" else step.kind, "faint", "span")
            with tag("div", "track"):
                bar = tag("div", f"bar {step.kind}{' failed' if step.failed else ''}{'' if step.end else ' open'}")
                bar.props["title"] = "\n".join(words.line(text, 200) for text in (step.asked, step.answered) if text)
            self._bars.append(_Bar(step, bar, Text("", "length faint", "span")))

    def _place(self, begin: datetime, end: datetime) -> None:
        whole = max((end - begin).total_seconds(), 0.001)
        for one in self._bars:
            seconds = one.step.seconds(end)
            left = 100 * max(0.0, (one.step.start - begin).total_seconds()) / whole
            one.bar.style(f"left: {left:.3f}%; width: {100 * seconds / whole:.3f}%")
            suffix = " …" if one.step.end is None else ", unfinished" if one.step.abandoned else ""
            one.length.text = words.duration(round(seconds, 3 if seconds < 1 else 1)) + suffix
        if self._end_label:
            self._end_label.text = words.duration(round(whole, 3 if whole < 1 else 1))


class History:
    """The history, event by event, each with its payloads; new events are added at the end."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._drawn = 0
        self._limit = SHOWN_EVENTS
        with ui.expansion("History").classes("raw") as self._place:
            self._list = tag("ol", "history")
            self._more = ui.button("More", on_click=self._show_more, color=None).props("flat no-caps")
        self._place.set_visibility(False)

    def show(self, lines: list[Line]) -> None:
        """Show these events."""
        if lines[: self._drawn] != self._lines[: self._drawn]:  # another execution
            self._list.clear()
            self._drawn = 0
        self._lines = lines
        self._place.set_visibility(bool(lines))
        self._place.text = f"History, {len(lines):,} events"
        with self._list:
            for line in lines[self._drawn : self._limit]:
                self._draw(line, lines[0].time)
        self._drawn = min(len(lines), self._limit)
        self._more.set_visibility(len(lines) > self._limit)

    def _show_more(self) -> None:
        self._limit += SHOWN_EVENTS
        self.show(self._lines)

    def _draw(self, line: Line, begin: datetime) -> None:
        with tag("li"), tag("details" if line.payloads else "div", "event"):
            with tag("summary" if line.payloads else "div", "event-head"):
                offset = Text(f"+{words.duration((line.time - begin).total_seconds())}", "offset faint", "span")
                offset.props["title"] = words.exact(line.time)
                Text(line.title, element="strong")
                Text(line.about, "faint", "span")
            for name, payload in line.payloads:
                frame.payload(name.capitalize(), payload)
