"""The effects. An activity runs at least once: a worker may die after the effect, and before it could say so.

So each is made to have its effect once, however often it runs: the email's id names the file.
"""

import re
from email import message_from_string
from email.message import EmailMessage
from email.policy import SMTP, default
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from durabletask.task import ActivityContext
from models import AnsweredEmail, SpamEmail
from support import log, setting


def handle_spam_email(_: ActivityContext, data: dict[str, Any]) -> str:
    """Put an email aside as `spam/<id>.eml`; returns the file's path. In production: quarantine it, tell somebody."""
    email = SpamEmail.model_validate(data)
    message = _message(email.email_content)
    for name in ("From", "To", "Date", "Subject"):
        _copy_header(email.email_content, name, message, name)
    message["X-Spam-Flag"] = "YES"
    message["X-Spam-Report"] = _one_line(email.reason)
    return _write_once("spam", email.email_id, message)


def send_email(_: ActivityContext, data: dict[str, Any]) -> str:
    """Write the reply as `outbox/<id>.eml`; returns the file's path. In production: hand it to a mail server."""
    email = AnsweredEmail.model_validate(data)
    message = _message(email.response)
    for theirs, ours in (("To", "From"), ("From", "To"), ("Reply-To", "To"), ("Message-ID", "In-Reply-To")):
        _copy_header(email.email_content, theirs, message, ours)
    _copy_header(email.email_content, "Subject", message, "Subject")
    subject = str(message["Subject"] or "your message")
    del message["Subject"]
    message["Subject"] = subject if subject.lower().startswith("re:") else f"Re: {subject}"
    message["Date"] = formatdate(localtime=True)
    # The same at each run: a mail server that is given a message twice can tell by its id.
    message["Message-ID"] = f"<{file_name(email.email_id)}@reply.invalid>"
    message["Auto-Submitted"] = "auto-replied"
    return _write_once("outbox", email.email_id, message)


def file_name(identifier: str) -> str:
    """A file name for an id: the same for the same id, another for another, and never a path."""
    if re.fullmatch(r"[a-z0-9-]{6,80}", identifier):
        return identifier
    readable = re.sub(r"[^A-Za-z0-9]+", "-", identifier)[:40].strip("-")
    return f"{readable}~{sha256(identifier.encode()).hexdigest()[:24]}"


def _write_once(folder: str, email_id: str, message: EmailMessage) -> str:
    base = Path(setting("EMAIL_DIRECTORY") or Path(__file__).parent)
    path = base.resolve() / folder / f"{file_name(email_id)}.eml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name first: whoever looks into the folder sees the whole file, or none.
        unfinished = path.with_name(f".{uuid4().hex}.part")
        unfinished.write_bytes(message.as_bytes(policy=SMTP))
        unfinished.replace(path)
    log.info("%s", path)
    return str(path)


def _message(text: str) -> EmailMessage:
    message = EmailMessage()
    message.set_content(text)
    return message


def _copy_header(content: str, name: str, message: EmailMessage, as_name: str) -> None:
    """Take over a header from the lines at the top of an email's text, if it is there."""
    try:
        if value := message_from_string(content, policy=default)[name]:
            del message[as_name]
            message[as_name] = _one_line(value)
    except Exception as problem:  # what strangers write into headers makes Python's parser raise all sorts of errors
        log.warning("Left out the email's %s header, which cannot be read: %s", name, problem)


def _one_line(text: str) -> str:
    return " ".join(str(text).split())[:500]
