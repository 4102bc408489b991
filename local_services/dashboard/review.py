"""A draft or a call that waits for a person's decision, with the buttons for it."""

from typing import Any

from nicegui import ui

from local_services.dashboard import frame
from local_services.dashboard.actions import asking, raise_event
from local_services.dashboard.approval import EVENT, FEEDBACK_LIMIT, Approval, outcome, waiting
from local_services.dashboard.frame import Moment, Section, Text, tag
from local_services.dashboard.scheduler import Details, Hub


class Review:
    """Shows the draft, sends the decision, and shows whether it counted."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._id = ""
        self._sent = ""  # the id of the decision whose outcome is not known yet
        self._said = Section(frame.notice)
        self._place = Section(self._draw, "card review")

    def show(self, details: Details) -> None:
        """Show what the custom status contains."""
        self._id = details.id
        if self._sent and (said := outcome(details.raw_custom_status, self._sent)):
            self._sent = ""
            self._said.show(said)
        self._place.show(waiting(details.raw_custom_status) if details.is_active else None)

    def _draw(self, approval: Approval) -> None:
        frame.heading(approval.headline)
        if approval.deadline:
            with tag("div", "faint facts"):
                Text("The review ends", element="span")
                Moment(approval.deadline)
        if approval.ignored:
            Text(f"A decision was ignored. {approval.ignored}", "note")
        with tag("article", "draft").props("tabindex=0"):
            if approval.title:
                Text(approval.title, element="h3")
            frame.folded(approval.draft)
        with tag("div", "buttons"):
            approve = ui.button("Approve", icon="check", on_click=lambda: self._approve(approval), color="positive")
            approve.props("unelevated no-caps")
            reject = ui.button("Reject with feedback", icon="edit", on_click=lambda: self._reject(approval), color=None)
            reject.props("outline no-caps")

    def _approve(self, approval: Approval) -> None:
        async def approve() -> bool:
            return await self._send(approval.decision(True, ""))

        with asking(f"Approve this {approval.what}?", approval.title, "Approve", approve):
            pass

    def _reject(self, approval: Approval) -> None:
        async def reject() -> bool:
            text = (feedback.value or "").strip()
            if not text:
                ui.notify("The feedback cannot be empty: it says what to do better.", type="warning")
                return False
            return await self._send(approval.decision(False, text))

        with asking(f"Reject this {approval.what}", approval.title, "Reject", reject):
            feedback = ui.textarea("Why?" if approval.call else "What should the next draft do better?")
            feedback.props(f"outlined autogrow autofocus maxlength={FEEDBACK_LIMIT}")

    async def _send(self, decision: dict[str, Any]) -> bool:
        sent = await raise_event(self.hub, self._id, EVENT, decision)
        if sent and "decision_id" in decision:
            self._sent = decision["decision_id"]
            self._said.show("The decision was sent; waiting for a worker.")
        return sent
