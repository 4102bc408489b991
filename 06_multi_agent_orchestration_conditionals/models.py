"""What crosses a boundary: between client and orchestration, agents and orchestration, orchestration and activities."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, StringConstraints


def not_blank(text: str) -> str:
    """The text, if there is any. A check in code: models that answer by a JSON schema know no minimum lengths."""
    if not text.strip():
        raise ValueError("it is empty")
    return text


Given = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Answered = Annotated[str, AfterValidator(not_blank)]


class Email(BaseModel):
    """The orchestration's input: an email, its headers (From, Subject, …) at the top if it has any, then its text."""

    email_id: Given
    email_content: Given


class SpamVerdict(BaseModel):
    """What SpamDetectionAgent answers."""

    is_spam: bool
    reason: Answered


class EmailReply(BaseModel):
    """What EmailAssistantAgent answers."""

    response: Answered


class SpamEmail(Email):
    """What handle_spam_email is given."""

    reason: str


class AnsweredEmail(Email):
    """What send_email is given."""

    response: str
