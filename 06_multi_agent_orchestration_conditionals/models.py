"""What crosses a boundary: between client and orchestration, agents and orchestration, orchestration and activities."""

import re
from email.parser import HeaderParser
from typing import Annotated

from pydantic import AfterValidator, BaseModel, StringConstraints

AUTOMATIC = r"auto-submitted: (?!no\b).+|precedence: (bulk|junk|list)\b.*|list-id: .+"


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

    def header(self, name: str) -> str:
        """A header at the top of the content, on one line; empty if there is none. It is text, and is not decoded."""
        return " ".join(str(HeaderParser().parsestr(self.email_content).get(name, "")).split())[:1000]

    def automatic(self) -> str:
        """The header that says that no person sent it, such as `Precedence: bulk`; empty if there is none."""
        lines = (f"{name}: {self.header(name)}" for name in ("Auto-Submitted", "Precedence", "List-Id"))
        return next((line for line in lines if re.match(AUTOMATIC, line, re.IGNORECASE)), "")


class SpamVerdict(BaseModel):
    """What SpamDetectionAgent answers."""

    is_spam: bool
    reason: Answered


class EmailReply(BaseModel):
    """What EmailAssistantAgent answers."""

    response: Answered


class SpamEmail(Email):
    """What handle_spam_email receives."""

    reason: str


class AnsweredEmail(Email):
    """What send_email receives."""

    response: str
