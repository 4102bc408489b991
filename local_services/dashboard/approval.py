"""What waits for a person's decision: a draft of sample 07, or a tool's call of 03. It is in the custom status."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from local_services.dashboard.words import parsed, parsed_time

EVENT = "HumanApproval"
MARK = "Requesting human feedback"
FEEDBACK_LIMIT = 20_000  # characters, as in sample 07


@dataclass(frozen=True)
class Approval:
    """A draft that waits for a decision, or a call."""

    headline: str
    title: str = ""
    draft: str = ""
    attempt: int | None = None
    deadline: datetime | None = None
    ignored: str = ""  # why the previous decision did not count
    call: str = ""  # which call, if it is no draft

    def decision(self, approved: bool, feedback: str) -> dict[str, Any]:
        """The event's payload. It says which draft or call it is for, so that it cannot count for another one."""
        which = {"call": self.call} if self.call else {"attempt": self.attempt} if self.attempt is not None else {}
        sender = {"decision_id": uuid.uuid4().hex} if which else {}
        return {"approved": approved, "feedback": feedback, **which, **sender}

    @property
    def what(self) -> str:
        """What is decided on, for people."""
        return "call" if self.call else "draft"


def waiting(custom_status: str | None) -> Approval | None:
    """The draft in a custom status, if any: the first line begins with MARK, then follows JSON about the draft."""
    headline, about = _read(custom_status)
    if not headline.startswith(MARK):
        return None
    draft = about.get("draft")
    title, content = (draft.get("title"), draft.get("content")) if isinstance(draft, dict) else ("", draft)
    attempt = about.get("attempt")
    return Approval(
        headline,
        title=str(title or ""),
        draft=str(content or ""),
        attempt=attempt if isinstance(attempt, int) else None,
        deadline=parsed_time(about.get("deadline")),
        ignored=str(_last_decision(about).get("ignored") or ""),
        call=str(about.get("call") or ""),
    )


def outcome(custom_status: str | None, decision_id: str) -> str | None:
    """Whether a decision counted, as a sentence; None while that is not known."""
    _, about = _read(custom_status)
    if decision_id in (about.get("counted") or []):
        return "The decision counts."
    last = _last_decision(about)
    return f"The decision does not count. {last.get('ignored')}" if last.get("decision_id") == decision_id else None


def _read(custom_status: str | None) -> tuple[str, dict[str, Any]]:
    text = parsed(custom_status)
    headline, _, rest = text.partition("\n") if isinstance(text, str) else ("", "", "")
    about = parsed(rest)
    return headline, about if isinstance(about, dict) else {"draft": rest.strip()}


def _last_decision(about: dict[str, Any]) -> dict[str, Any]:
    last = about.get("last_decision")
    return last if isinstance(last, dict) else {}
