"""What crosses a boundary: the orchestration's input, a draft, and a person's decision on it."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StringConstraints

FEEDBACK_LIMIT = 20_000  # characters: feedback becomes a part of the next prompt
APPROVING = ("yes", "y", "yes please", "ok", "okay", "approve", "approved", "publish", "lgtm", "looks good")
REJECTING = ("no", "n", "reject", "rejected")


def not_blank(text: str) -> str:
    """The text, stripped. A check in code: models that answer by a JSON schema know no minimum lengths."""
    if not (stripped := text.strip()):
        raise ValueError("it is empty")
    return stripped


class ContentRequest(BaseModel):
    """The orchestration's input.

    Attributes:
        max_review_attempts: how many drafts a person sees at most.
        approval_timeout_seconds: for the decision on each of them; a year at most.
    """

    topic: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
    max_review_attempts: int = Field(default=3, ge=1, le=100)
    approval_timeout_seconds: float = Field(default=300, gt=0, le=366 * 24 * 3600)


class Draft(BaseModel):
    """What ContentWriterAgent answers, and what is published."""

    title: Annotated[str, AfterValidator(not_blank)]
    content: Annotated[str, AfterValidator(not_blank)]


class Decision(BaseModel):
    """What a person says to a draft: the data of the event HumanApproval.

    Attributes:
        attempt: the number of the draft that the person saw. Without it, the decision is for the draft that waits.
        decision_id: by which the sender can tell whether the decision counted.
        by: who decides.
    """

    model_config = ConfigDict(extra="forbid")  # {"approved": true, "Attempt": 1} must not count for draft 2

    approved: StrictBool
    feedback: Annotated[str, StringConstraints(strip_whitespace=True, max_length=FEEDBACK_LIMIT)] | None = None
    attempt: Annotated[int, Field(strict=True, ge=1, le=100)] | None = None
    decision_id: Annotated[str, StringConstraints(max_length=100)] | None = None
    by: Annotated[str, StringConstraints(max_length=100)] | None = None

    @staticmethod
    def read(event_data: object) -> "Decision":
        """The decision in an event's data: an object, the same as JSON text, or a word. Raises ValidationError."""
        if not isinstance(event_data, str):
            return Decision.model_validate(event_data)
        if (approved := meaning(event_data)) is not None:
            return Decision(approved=approved)
        return Decision.model_validate_json(event_data)


def meaning(words: str) -> bool | None:
    """True for words that approve, False for words that reject; None for all else, such as "yes, but shorter"."""
    word = " ".join(words[:100].casefold().split()).rstrip(".!")
    return True if word in APPROVING else False if word in REJECTING else None
