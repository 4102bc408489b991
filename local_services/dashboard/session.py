"""The page of an agent session: the conversation as a chat, tool calls included, and the raw state."""

from datetime import datetime

from durabletask.entities import EntityInstanceId
from nicegui import ui

from local_services.dashboard import conversation, frame, words
from local_services.dashboard.conversation import Entry, Part
from local_services.dashboard.frame import Moment, Section, Text, tag
from local_services.dashboard.scheduler import Hub, default_hub

SHOWN_ENTRIES = 200  # the latest ones of a long conversation


def session_page(hub: str = "", id: str = "") -> None:
    """The page; the query parameters select the entity."""
    with frame.page(hub or default_hub()) as task_hub:
        try:
            entity = EntityInstanceId.parse(id)
        except ValueError:
            Text("This is not the address of an agent session.", "empty")
            return
        frame.keep_up_to_date(SessionPage(task_hub, entity).refresh)


class SessionPage:
    """The content of the page."""

    def __init__(self, hub: Hub, entity: EntityInstanceId) -> None:
        self.hub = hub
        self.entity = entity
        self._read_at: datetime | None = None
        self._entries: list[Entry] = []
        self._gone = Section(frame.notice)
        self._head = Section(self._draw_head, "head")
        with tag("section", "chat") as self._chat:
            pass
        self._busy = Section(frame.notice)
        self._raw = Section(self._draw_raw)

    async def refresh(self) -> None:
        """Read the conversation if it has changed. Raises SchedulerProblem."""
        found = await frame.reading(self.hub.session_changed, self.entity)
        missing = "There is no such session in this task hub. This page shows its last known state."
        self._gone.show(None if found else missing)
        if not found:
            return
        changed, queued = found
        self._busy.show(f"{queued} waiting for an answer …" if queued else None)
        if changed != self._read_at:
            state = await frame.reading(self.hub.session_state, self.entity)
            self._read_at = changed
            self._head.show((conversation.summary(state, self.entity.entity), changed))
            self._show_entries(conversation.entries(state))
            self._raw.show(state)

    def _show_entries(self, entries: list[Entry] | None) -> None:
        """Add new entries; a conversation only grows, so the others stay as they are."""
        entries = entries or []
        known = len(self._entries)
        if entries[:known] != self._entries:
            self._chat.clear()
            known = 0
        with self._chat:
            if not known and len(entries) > SHOWN_ENTRIES:
                known = len(entries) - SHOWN_ENTRIES
                Text(f"{known:,} earlier entries are in the raw state.", "faint")
            for entry in entries[known:]:
                self._draw_entry(entry)
        self._entries = entries

    def _draw_head(self, model: tuple[conversation.Summary, datetime]) -> None:
        about, changed = model
        Text(about.agent, element="h1")
        with tag("div", "facts"):
            with tag("span", "id"):
                Text(self.entity.key, element="span")
                frame.copy_button(self.entity.key, "Copy the key")
            Text(f"{about.turns} turn{'' if about.turns == 1 else 's'}", element="span")
            Text(f"{about.tokens:,} tokens", element="span")
            Moment(changed)

    def _draw_entry(self, entry: Entry) -> None:
        side = "request" if entry.is_request else "response"
        with tag("article", f"entry {side}"):
            with tag("div", "author"):
                Text(entry.author, element="strong")
                if entry.time:
                    Moment(entry.time)
                if entry.orchestration_id:
                    frame.link("from an orchestration", frame.orchestration_url(self.hub.name, entry.orchestration_id))
            for part in entry.parts:
                if part.kind == "call":
                    results = [other for other in entry.parts if other.kind == "result"]
                    _draw_call(part, [other for other in results if other.call_id == part.call_id])
                elif part.kind != "result":
                    with tag("div", f"bubble {part.kind}"):
                        frame.folded(part.text, "code" if part.kind == "other" else "")
            if entry.tokens:
                counts = ", ".join(f"{count:,} {kind}" for kind, count in entry.tokens.items() if kind != "total")
                Text(f"{counts} tokens", "faint tokens")

    def _draw_raw(self, state: str) -> None:
        with ui.expansion("Raw state").classes("raw"):
            frame.payload("State", state)


def _draw_call(call: Part, results: list[Part]) -> None:
    """A tool call, with its result if it has one."""
    with tag("details", "call") as fold:
        fold.props("open")
        with tag("summary"):
            Text(call.name, "code", "span")
            Text("tool call", "faint", "span")
        Text("Arguments", "faint label")
        frame.folded(call.text, "code")
        for result in results:
            Text("Result", "faint label")
            frame.folded(words.pretty(result.text), "code")
