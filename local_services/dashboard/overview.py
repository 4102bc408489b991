"""The first page: all orchestrations and all agent sessions of a task hub."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from nicegui import ui

from local_services.dashboard import frame, words
from local_services.dashboard.conversation import Summary
from local_services.dashboard.frame import Moment, Text, tag
from local_services.dashboard.scheduler import STATUSES, Hub, Orchestration, Session, default_hub

ROWS = 25  # on a page

T = TypeVar("T")
Row: TypeAlias = tuple[str, str, Sequence["str | datetime"]]  # its key, the page that it links to, and its cells

ORCHESTRATION_COLUMNS = ("name", "id", "status", "started", "duration", "custom status")
SESSION_COLUMNS = ("agent", "key", "turns", "tokens", "last activity")


def overview_page(hub: str = "", view: str = "", status: str = "", q: str = "") -> None:
    """The page; the query parameters select what it shows."""
    with frame.page(hub or default_hub(), back=False) as task_hub:
        overview = Overview(task_hub, view, status if status in STATUSES else "", q)
        frame.keep_up_to_date(overview.refresh)


class Overview:
    """The lists, their filters and their pages."""

    def __init__(self, hub: Hub, view: str, status: str, text: str) -> None:
        self.hub = hub
        self.view = view  # "sessions" or "orchestrations"; empty until the lists are read
        self.status = status
        self.text = text
        with tag("div") as self._content:
            with tag("div", "views").props('role="tablist"'):
                self._views = {name: self._view_button(name) for name in ("orchestrations", "sessions")}
            with tag("div", "filters"):
                with tag("div", "counters") as self._counters_place:
                    self._counters = {name: self._counter(name) for name in ("", *STATUSES)}
                search = ui.input(placeholder="Filter by text", value=text, on_change=self._search)
                search.props('dense outlined clearable type=search debounce=200 aria-label="Filter"').classes("search")
            self._orchestrations = Listing(ORCHESTRATION_COLUMNS, self.show)
            self._sessions = Listing(SESSION_COLUMNS, self.show)
            self._empty = Text("", "empty")
        self._content.set_visibility(False)  # until the lists are read

    def _view_button(self, name: str) -> ui.button:
        button = ui.button(on_click=lambda: self._change(view=name), color=None).props("flat no-caps").classes("view")
        return button.props('role="tab"')

    def _counter(self, name: str) -> ui.button:
        def choose() -> Any:
            return self._change(status="" if self.status == name else name)

        return (
            ui.button(on_click=choose, color=None)
            .props("flat dense no-caps")
            .classes(f"counter {name.lower() or 'all'}")
        )

    async def _search(self, event: Any) -> None:
        await self._change(text=(event.value or "").strip())

    async def _change(self, **changes: str) -> None:
        """Show something else, beginning with the first page, and update the address."""
        for name, value in changes.items():
            setattr(self, name, value)
        self._orchestrations.page = self._sessions.page = 1
        address = frame.url("/", hub=self.hub.name, view=self.view, status=self.status, q=self.text)
        ui.navigate.history.replace(address)
        await self.show()

    async def refresh(self) -> None:
        """Read what is new, and show it. Raises SchedulerProblem."""
        await frame.reading(self.hub.refresh)
        if not self.view:
            self.view = "sessions" if self.hub.sessions and not self.hub.orchestrations else "orchestrations"
        await self.show()

    async def show(self) -> None:
        """Show the hub's lists. Raises SchedulerProblem."""
        hub, of_sessions = self.hub, self.view == "sessions"
        self._content.set_visibility(True)
        self._show_counters()
        self._counters_place.set_visibility(not of_sessions)
        if of_sessions:
            shown = self._sessions.turn(hub.find_sessions(self.text))
            about = await frame.reading(hub.summaries, shown)
            self._sessions.show([self._session_row(one, about[one.id]) for one in shown])
        else:
            shown = self._orchestrations.turn(hub.find(self.status, self.text))
            about = await frame.reading(hub.custom_statuses, shown)
            self._orchestrations.show([self._orchestration_row(one, about[one.id]) for one in shown])
        self._sessions.set_visibility(of_sessions and bool(shown))
        self._orchestrations.set_visibility(not of_sessions and bool(shown))
        self._empty.set_visibility(not shown)
        self._empty.text = self._nothing(bool(hub.sessions if of_sessions else hub.orchestrations))

    def _nothing(self, filtered: bool) -> str:
        if filtered:
            return "Nothing matches the filter."
        what = "agent sessions" if self.view == "sessions" else "orchestrations"
        return f"Task hub '{self.hub.name}' has no {what} yet. They appear here as soon as a client starts one."

    def _show_counters(self) -> None:
        counts = self.hub.counts()
        sizes = {"orchestrations": len(self.hub.orchestrations), "sessions": len(self.hub.sessions)}
        for name, button in self._views.items():
            title = "Orchestrations" if name == "orchestrations" else "Agent sessions"
            button.text = f"{title} {sizes[name]:,}"
            selected = name == self.view
            button.props["aria-selected"] = str(selected).lower()
            button.classes(add="chosen" if selected else "", remove="" if selected else "chosen")
        for name, button in self._counters.items():
            count = counts[name] if name else counts.total()
            button.text = f"{name.capitalize() or 'All'} {count:,}"
            chosen = name == self.status
            button.props["aria-pressed"] = str(chosen).lower()
            button.classes(add="chosen" if chosen else "", remove="" if chosen else "chosen")
            button.set_visibility(bool(count) or chosen or name in ("", "RUNNING", "COMPLETED", "FAILED"))

    def _orchestration_row(self, row: Orchestration, custom_status: str) -> Row:
        until = words.now() if row.is_active else row.updated
        duration = words.duration(round((until - row.started).total_seconds(), 3 if not row.is_active else 0))
        target = frame.orchestration_url(self.hub.name, row.id)
        return row.id, target, (row.name, row.id, row.status, row.started, duration, custom_status)

    def _session_row(self, session: Session, about: Summary) -> Row:
        target = frame.entity_url(self.hub.name, session.id)
        cells = (about.agent, session.entity.key, f"{about.turns:,}", f"{about.tokens:,}", session.changed)
        return session.id, target, cells


class Listing:
    """A table that shows one page of rows, and the buttons for the other pages.

    Rows that stay are updated and not drawn again, so that a selection or the keyboard's focus stays. (NiceGUI's own
    table draws cells with links or badges again each time.)
    """

    def __init__(self, columns: Sequence[str], on_turn: Callable[[], Any]) -> None:
        self.page = 1
        self._columns = columns
        self._on_turn = on_turn
        self._rows: dict[str, tuple[ui.element, list[Text | ui.link]]] = {}
        with tag("div", "listing") as self._place:
            with tag("table"):
                with tag("thead"), tag("tr"):
                    for name in columns:
                        Text(name.capitalize(), _css(name), "th")
                self._body = tag("tbody")
            with tag("div", "pages") as self._pages:
                self._buttons = ui.pagination(1, 1, direction_links=True, on_change=self._turn)
                self._buttons.props("boundary-numbers max-pages=5 color=grey-6 active-color=primary")
                self._range = Text("", "faint")

    async def _turn(self, event: Any) -> None:
        if event.value != self.page:
            self.page = event.value
            await self._on_turn()

    def turn(self, found: Sequence[T]) -> Sequence[T]:
        """The rows of the current page."""
        last = max(1, -(-len(found) // ROWS))
        self.page = min(self.page, last)
        self._buttons.max = last
        self._buttons.value = self.page
        first = (self.page - 1) * ROWS
        shown = found[first : first + ROWS]
        self._range.text = f"{first + 1:,}–{first + len(shown):,} of {len(found):,}"
        self._pages.set_visibility(last > 1)
        return shown

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows."""
        kept = {key for key, *_ in rows}
        for key in [key for key in self._rows if key not in kept]:
            self._rows.pop(key)[0].delete()
        for place, (key, target, values) in enumerate(rows):
            if key not in self._rows:
                self._rows[key] = self._draw(target, values)
            row, cells = self._rows[key]
            if self._body.default_slot.children[place] is not row:
                row.move(target_index=place)
            for name, cell, value in zip(self._columns, cells, values, strict=True):
                _update(name, cell, value)

    def _draw(self, target: str, values: Sequence[str | datetime]) -> tuple[ui.element, list[Text | ui.link]]:
        cells: list[Text | ui.link] = []
        with self._body, tag("tr") as row:
            for place, (name, value) in enumerate(zip(self._columns, values, strict=True)):
                with tag("td", _css(name)):
                    if isinstance(value, datetime):
                        cells.append(Moment(value))
                    else:
                        cells.append(frame.link("", target) if place < 2 else Text("", element="span"))
        return row, cells

    def set_visibility(self, visible: bool) -> None:
        """Show or hide the table and its buttons."""
        self._place.set_visibility(visible)


def _update(name: str, cell: Text | ui.link, value: str | datetime) -> None:
    if isinstance(value, datetime):
        assert isinstance(cell, Moment)
        cell.show(value)
    elif name == "status":
        cell.text = value.capitalize()
        cell.classes(replace=f"status {value.lower()}")
    else:
        cell.text = value
        cell.props["title"] = value


def _css(column: str) -> str:
    return f"col-{column.replace(' ', '-')}"
