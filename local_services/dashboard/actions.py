"""The actions on an orchestration; each asks first."""

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from durabletask.azuremanaged.client import DurableTaskSchedulerClient as Client
from nicegui import ui

from local_services.dashboard import frame
from local_services.dashboard.frame import Text, tag
from local_services.dashboard.scheduler import Details, Hub, SchedulerProblem

Act = Callable[[], Awaitable[bool]]


async def attempt(hub: Hub, said: str, call: Callable[[Client], object]) -> bool:
    """Call the scheduler and show `said`; if the call fails, show why and return False."""
    try:
        await frame.reading(hub.act, call)
    except frame.PageClosed:
        return False
    except SchedulerProblem as problem:
        ui.notify(str(problem), type="negative", multi_line=True)
        return False
    ui.notify(said, type="positive")
    return True


async def raise_event(hub: Hub, instance_id: str, name: str, data: object) -> bool:
    """Send an external event; returns whether it was sent."""
    return await attempt(
        hub, "The event was sent.", lambda client: client.raise_orchestration_event(instance_id, name, data=data)
    )


@contextmanager
def asking(title: str, text: str, action: str, act: Act, danger: bool = False) -> Iterator[None]:
    """A dialog whose button `action` calls `act`, and closes if that returns True; the `with` adds fields to it."""

    async def go() -> None:
        if await act():
            dialog.close()

    # Outside of elements that are drawn again: those would remove the dialog while somebody types into it.
    with ui.context.client.content, ui.dialog() as dialog, tag("div", "card dialog"):
        Text(title, element="h2")
        Text(text, "text")
        with tag("div", "fields"):
            yield
        with tag("div", "buttons"):
            ui.button("Cancel", on_click=dialog.close, color=None).props("flat no-caps")
            ui.button(action, on_click=go, color="negative" if danger else "primary").props("unelevated no-caps")
    dialog.on("hide", dialog.delete)
    dialog.open()


class Actions:
    """The buttons of an orchestration's page."""

    def __init__(self, hub: Hub, details: Details) -> None:
        self.hub = hub
        self.id = details.id
        with tag("div", "actions"):
            if details.is_active:
                self._button("Raise event", "bolt", self._event)
                if details.status == "SUSPENDED":
                    self._button("Resume", "play_arrow", self._resume)
                else:
                    self._button("Suspend", "pause", self._suspend)
                self._button("Terminate", "stop", self._terminate)
            else:
                self._button("Restart", "replay", self._restart)
                self._button("Purge", "delete", self._purge)

    def _button(self, text: str, icon: str, ask: Callable[[], None]) -> None:
        ui.button(text, icon=icon, on_click=ask, color=None).props("outline dense no-caps")

    def _event(self) -> None:
        async def send() -> bool:
            event, text = (name.value or "").strip(), (payload.value or "").strip()
            if problem := json_problem(text) or (None if event else "The event needs a name."):
                ui.notify(problem, type="warning")
                return False
            return await raise_event(self.hub, self.id, event, json.loads(text) if text else None)

        text = "The orchestration receives it when it waits for an event with this name."
        with asking("Raise an event", text, "Send", send):
            name = ui.input("Name").props("outlined dense autofocus")
            payload = ui.textarea("Payload in JSON, or empty", validation=json_problem)
            payload.props("outlined").classes("code")

    def _suspend(self) -> None:
        text = "It pauses until somebody resumes it."
        self._confirm("Suspend", text, "The request was sent.", lambda client: client.suspend_orchestration(self.id))

    def _resume(self) -> None:
        text = "It continues where it was suspended."
        self._confirm("Resume", text, "The request was sent.", lambda client: client.resume_orchestration(self.id))

    def _terminate(self) -> None:
        text = "It ends immediately, unfinished. This cannot be undone."
        self._confirm(
            "Terminate", text, "The request was sent.", lambda client: client.terminate_orchestration(self.id), True
        )

    def _purge(self) -> None:
        text = "The scheduler deletes its input, output and history. This cannot be undone."
        self._confirm("Purge", text, "Purged.", lambda client: client.purge_orchestration(self.id), True)

    def _restart(self) -> None:
        def restart(client: Client) -> None:
            instance_id = client.restart_orchestration(self.id, restart_with_new_instance_id=True)
            started.append(instance_id)

        async def act() -> bool:
            done = await attempt(self.hub, "Started again.", restart)
            if done:
                ui.navigate.to(frame.orchestration_url(self.hub.name, started[0]))
            return done

        started: list[str] = []
        text = "It starts from the beginning, with the same input and a new id."
        with asking("Restart this orchestration?", text, "Restart", act):
            pass

    def _confirm(
        self, action: str, text: str, said: str, call: Callable[[Client], object], danger: bool = False
    ) -> None:
        async def act() -> bool:
            return await attempt(self.hub, said, call)

        with asking(f"{action} this orchestration?", text, action, act, danger):
            pass


def json_problem(text: str | None) -> str | None:
    """What is wrong with a text that must be JSON; None if it is valid or empty."""
    try:
        if text and text.strip():
            json.loads(text)
    except ValueError as error:
        return f"Not JSON: {error}"
    return None
