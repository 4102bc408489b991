"""What crosses a boundary: the orchestration's input, a draft, a person's decision, and what reviewers are shown."""

import re
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, StrictBool, StrictInt, StringConstraints, ValidationError

EVENT = "HumanApproval"
"""The name of the external event that carries a decision."""

WAITING = "Requesting human feedback"
"""How the custom status begins while a draft waits for a decision."""

SHOWN_LIMIT = 20_000
"""Characters of a draft that travel in the custom status, which has room for 1 MB. The history has the whole."""

FEEDBACK_LIMIT = 20_000
"""Characters: it becomes a part of the next prompt."""


def not_blank(text: str) -> str:
    """The text, if there is any. A check in code: models that answer by a JSON schema know no minimum lengths."""
    if not text.strip():
        raise ValueError("it is empty")
    return text


class ContentRequest(BaseModel):
    """The orchestration's input.

    Attributes:
        max_review_attempts: how many drafts a person is shown at most.
        approval_timeout_seconds: for the decision on each of them; a year at most.
    """

    topic: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
    max_review_attempts: int = Field(default=3, ge=1, le=100)
    approval_timeout_seconds: float = Field(default=300, gt=0, le=366 * 24 * 3600)


class Draft(BaseModel):
    """What WriterAgent answers."""

    title: Annotated[str, AfterValidator(not_blank)]
    content: Annotated[str, AfterValidator(not_blank)]

    def shortened(self) -> "Draft":
        """As much of the draft as travels in the custom status."""
        left_out = len(self.content) - SHOWN_LIMIT
        if left_out > 0:
            end = f"\n[… {left_out:,} more characters: the orchestration's history has the whole draft.]"
            return Draft(title=self.title[:300], content=self.content[:SHOWN_LIMIT] + end)
        return Draft(title=self.title[:300], content=self.content)


class Decision(BaseModel):
    """What a person says to a draft.

    Attributes:
        attempt: the number of the draft that was seen. Without it, the decision is for the one that is waiting.
        decision_id: by which whoever sent it can tell whether it counted.
    """

    approved: StrictBool
    feedback: Annotated[str, StringConstraints(strip_whitespace=True, max_length=FEEDBACK_LIMIT)] | None = None
    attempt: StrictInt | None = None
    decision_id: Annotated[str, StringConstraints(max_length=100)] | None = None


class Verdict(BaseModel):
    """What became of the decision that came last: it counted, unless there is a reason why it was ignored."""

    attempt: int | None = None
    decision_id: str | None = None
    approved: bool | None = None
    ignored: str | None = None


class Review(BaseModel):
    """What the custom status tells reviewers: a headline for people, and below it this, as JSON, for programs.

    Attributes:
        attempt: the number of the latest draft, from 1.
        of: how many drafts there will be at most.
        since, deadline: when the draft was shown, and until when a decision on it counts (UTC).
        counted: for each draft that was decided on, the id of the decision that counted; null if it had none.
    """

    attempt: int = 0
    of: int
    since: datetime | None = None
    deadline: datetime | None = None
    draft: Draft | None = None
    last_decision: Verdict | None = None
    counted: list[str | None] = []

    def as_status(self, headline: str) -> str:
        """The custom status, one string."""
        return f"{headline}\n{self.model_dump_json()}"

    @staticmethod
    def from_status(status: object) -> "Review | None":
        """The review in a custom status; None if there is none in it."""
        try:
            return Review.model_validate_json(status.partition("\n")[2]) if isinstance(status, str) else None
        except ValidationError:
            return None

    def take(self, payload: object, seen: bool) -> Decision | None:
        """The decision in an event's payload, if it counts; `last_decision` says what became of it.

        Args:
            seen: whether the draft had been shown when the decision came.
        """
        try:
            decision = read_decision(payload)
        except ValueError as problem:
            self.last_decision = Verdict(ignored=str(problem))
            return None
        ignored = None
        if decision.attempt not in (None, self.attempt):
            ignored = f"It is for draft {decision.attempt}; the one that is waiting is draft {self.attempt}."
        elif not seen:
            ignored = f"It came before draft {self.attempt} was shown."
        self.last_decision = Verdict(**decision.model_dump(exclude={"feedback"}), ignored=ignored)
        if ignored:
            return None
        self.counted = [*self.counted, decision.decision_id]
        return decision


def read_decision(payload: object) -> Decision:
    """The decision in an event's payload: an object, the same as JSON text, or a word.

    The words are yes, no, approve… and reject…; what follows the latter is the feedback, as in "reject: too long".

    Raises:
        ValueError: it is no decision. The message says why.
    """
    try:
        if not isinstance(payload, str):
            return Decision.model_validate(payload)
        if payload.lstrip().startswith("{"):
            return Decision.model_validate_json(payload)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'payload'}: {one['msg']}" for one in error.errors())
        raise ValueError(f"It is not a decision: {wrong}"[:500]) from None
    words = payload.strip()
    if re.fullmatch(r"yes\W*|approve.*", words, re.IGNORECASE | re.DOTALL):
        return Decision(approved=True)
    if rejected := re.fullmatch(r"(?:no\W*|reject\w*(.*))", words, re.IGNORECASE | re.DOTALL):
        return Decision(approved=False, feedback=(rejected[1] or "").lstrip(" \t\r\n:;,.!–-")[:FEEDBACK_LIMIT])
    raise ValueError(f"It is not a decision: {payload[:80]!r}")
