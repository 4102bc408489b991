"""What all pages share: the frame around them, updating them, and showing times, statuses and payloads.

Everything from a payload is shown as text: in labels and properties, never as HTML, Markdown or a template.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from nicegui import ElementFilter, ui

from local_services.dashboard import words
from local_services.dashboard.scheduler import Hub, SchedulerProblem, hub

TICK_SECONDS = 0.7
FOLD = 10_000  # characters of a payload that are shown at first
THEMES = {"auto": ("brightness_auto", None), "light": ("light_mode", False), "dark": ("dark_mode", True)}

M = TypeVar("M")


def url(path: str, **query: str) -> str:
    """The address of a page of this dashboard."""
    return f"{path}?{urlencode({key: value for key, value in query.items() if value})}"


def entity_url(hub_name: str, entity_id: str) -> str:
    """The address of an agent's session."""
    return url("/session", hub=hub_name, id=entity_id)


def orchestration_url(hub_name: str, instance_id: str) -> str:
    """The address of an orchestration."""
    return url("/orchestration", hub=hub_name, id=instance_id)


def tag(name: str, classes: str = "") -> ui.element:
    """An HTML element."""
    return ui.element(name).classes(classes)


class Text(ui.label):
    """A text in an HTML element."""

    def __init__(self, text: str, classes: str = "", element: str = "div") -> None:
        super().__init__(text)
        self.tag = element
        self.classes(classes)


class Moment(Text):
    """How long ago something was, kept up to date; the tooltip has the exact time."""

    def __init__(self, time: datetime) -> None:
        super().__init__("", "moment", "time")
        self.show(time)

    def show(self, time: datetime) -> None:
        """Show how long ago that time was."""
        self.time = time
        self.text = words.ago(time)
        self.props["title"] = words.exact(time)
        self.props["datetime"] = time.isoformat()


@contextmanager
def page(hub_name: str, back: bool = True) -> Iterator[Hub]:
    """The frame of a page; the `with` fills it, and receives the task hub."""
    theme = ui.context.client.request.cookies.get("theme", "auto")
    ui.colors(primary="#2f62c9", positive="#1c7c48", negative="#c0342c")
    with tag("header", "top"), tag("div", "inner"):
        link("Durable agents", url("/", hub=hub_name), "brand")
        with tag("div", "hub"):
            Text("Task hub", "faint", "span")
            name = ui.input(value=hub_name).props("dense outlined").props('aria-label="Task hub"')
            name.on("keydown.enter", lambda: ui.navigate.to(url("/", hub=(name.value or "").strip() or hub_name)))
        _theme_button(theme if theme in THEMES else "auto")
    with tag("main", "inner"):
        if back:
            link("‹ All orchestrations and sessions", url("/", hub=hub_name), "back")
        yield hub(hub_name)


def _theme_button(theme: str) -> None:
    dark = ui.dark_mode(THEMES[theme][1])
    names = list(THEMES)

    def change() -> None:
        nonlocal theme
        theme = names[(names.index(theme) + 1) % len(names)]
        dark.value = THEMES[theme][1]
        ui.run_javascript(f'document.cookie = "theme={theme};path=/;max-age=31536000;SameSite=Strict"')
        show()

    def show() -> None:
        button.props["icon"] = THEMES[theme][0]
        button.props["aria-label"] = button.props["title"] = f"Colors: {theme}"

    button = ui.button(on_click=change, color=None).props("flat round dense")
    show()


def link(text: str, target: str, classes: str = "") -> ui.link:
    """A link within the dashboard."""
    return ui.link(text, target).classes(classes)


class PageClosed(Exception):
    """The page was closed while its data was read."""


async def reading(call: Callable[..., M], *arguments: Any) -> M:
    """The result of a call to the scheduler, in a thread so that other pages are not blocked.

    Raises:
        SchedulerProblem: the call's problem.
        PageClosed: the page is closed, so nothing can be shown in it.
    """
    client = ui.context.client
    found = await asyncio.to_thread(call, *arguments)
    if client.is_deleted:
        raise PageClosed
    return found


def keep_up_to_date(refresh: Callable[[], Awaitable[None]]) -> None:
    """Call `refresh` now and every TICK_SECONDS. While the scheduler is unreachable, a banner says so."""
    banner = Text("", "banner").props('role="alert"')
    banner.move(target_index=0)
    banner.set_visibility(False)
    client = ui.context.client

    async def tick() -> None:
        try:
            await refresh()
        except PageClosed:
            return
        except SchedulerProblem as problem:
            banner.text = str(problem)
        else:
            banner.text = ""
        banner.set_visibility(bool(banner.text))
        for moment in ElementFilter(kind=Moment):
            moment.text = words.ago(moment.time)

    async def tick_if_open() -> None:
        if client.has_socket_connection:
            await tick()

    ui.timer(TICK_SECONDS, tick_if_open)


class Section(Generic[M]):
    """A part of a page that is drawn again only when its data has changed, so that folds and selections stay."""

    def __init__(self, draw: Callable[[M], object], classes: str = "") -> None:
        self._draw = draw
        self._shown: M | None = None
        self._place = tag("section", classes)
        self._place.set_visibility(False)

    def show(self, model: M | None) -> None:
        """Show the model; nothing if it is None."""
        if model != self._shown:
            self._shown = model
            self._place.clear()
            self._place.set_visibility(model is not None)
            if model is not None:
                with self._place:
                    self._draw(model)


def notice(text: str) -> None:
    """A remark at the top of a page."""
    Text(text, "banner quiet").props('role="status"')


def heading(text: str) -> None:
    """The heading of a section."""
    Text(text, element="h2")


def status_badge(status: str) -> None:
    """An orchestration's status, in its color."""
    Text(status.capitalize(), f"status {status.lower()}", "span")


def payload(title: str, raw: str | None) -> None:
    """A payload in a card: formatted, with a copy button, and folded if it is long."""
    with tag("div", "card payload"):
        with tag("div", "payload-head"):
            Text(title, element="h3")
            if raw:
                copy_button(words.pretty(raw), f"Copy {title.lower()}")
        if raw:
            folded(words.pretty(raw), "code")
        else:
            Text("none", "faint")


def folded(text: str, classes: str = "") -> None:
    """A text with its line breaks; a very long one is cut, with a button for the rest."""
    shown = Text(text[:FOLD], f"text {classes}").props("tabindex=0" if "code" in classes else "")
    if len(text) <= FOLD:
        return

    def unfold() -> None:
        shown.text = text
        note.delete()

    with tag("div", "fold") as note:
        Text(f"{FOLD:,} of {len(text):,} characters", "faint")
        ui.button("Show all", on_click=unfold, color=None).props("flat dense no-caps")


def copy_button(text: str, label: str) -> None:
    """A button that copies the whole text to the clipboard."""

    def copy() -> None:
        ui.clipboard.write(text)
        ui.notify("Copied")

    button = ui.button(icon="content_copy", on_click=copy, color=None).props("flat round dense size=sm")
    button.props["aria-label"] = button.props["title"] = label
