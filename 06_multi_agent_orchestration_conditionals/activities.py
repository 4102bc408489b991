"""The effects. An activity runs at least once: a worker may die after the effect, and before it has reported it.

So each is written to take effect once, however often it runs: the email's id names the file.
"""

import re
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, getaddresses
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from hosting.logs import log
from hosting.program import setting
from hosting.terminal import printable

from durabletask.task import ActivityContext
from models import AnsweredEmail, SpamEmail


def handle_spam_email(_: ActivityContext, email: SpamEmail) -> str:
    """Put an email aside as `spam/<id>.eml`; returns the file's path. In production: quarantine it, tell somebody."""
    message = EmailMessage(policy=SMTP)
    message.set_content(email.email_content)
    for name in ("From", "To", "Date", "Subject"):
        set_header(message, name, email.header(name))
    set_header(message, "X-Spam-Flag", "YES")
    set_header(message, "X-Spam-Report", email.reason[:500])
    return write_once("spam", email.email_id, message)


def send_email(_: ActivityContext, email: AnsweredEmail) -> str:
    """Write the reply as `outbox/<id>.eml`; returns the file's path. In production: hand it to a mail server."""
    message = EmailMessage(policy=SMTP)
    message.set_content(email.response)
    set_header(message, "From", first_address(email.header("To")))
    set_header(message, "To", first_address(email.header("Reply-To")) or first_address(email.header("From")))
    if re.fullmatch(r"<(?!.*=\?)[!-;=?-~]{1,250}>", email.header("Message-ID")):
        set_header(message, "In-Reply-To", email.header("Message-ID"))
    subject = email.header("Subject") or "your message"
    set_header(message, "Subject", subject if subject.lower().startswith("re:") else f"Re: {subject}")
    message["Date"] = formatdate(localtime=True)
    # The same at each run, so that a mail server that receives the reply twice can recognize it.
    message["Message-ID"] = f"<{file_name(email.email_id)}@reply.invalid>"
    message["Auto-Submitted"] = "auto-replied"
    return write_once("outbox", email.email_id, message)


def file_name(email_id: str) -> str:
    """A file name for an id: the same for the same id, another for another, and never a path."""
    if re.fullmatch(r"[a-z0-9-]{6,80}", email_id):
        return email_id
    readable = re.sub(r"[^A-Za-z0-9]+", "-", email_id)[:40].strip("-")
    return f"{readable}~{sha256(email_id.encode()).hexdigest()[:24]}"


def write_once(folder: str, email_id: str, message: EmailMessage) -> str:
    """Write the file, unless this email was handled before; returns its path."""
    base = Path(setting("EMAIL_DIRECTORY") or Path(__file__).parent).resolve()
    path, *others = (base / name / f"{file_name(email_id)}.eml" for name in {folder: 1, "outbox": 1, "spam": 1})
    for other in others:
        if other.exists():
            return f"no, this email was handled before: {other}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name first, so that nobody ever sees half of the file.
        unfinished = path.with_name(f".{uuid4().hex}.part")
        unfinished.write_bytes(message.as_bytes())
        unfinished.replace(path)
    log.info("%s", path)
    return str(path)


def first_address(text: str) -> str:
    """The first address in a header's text, with its name; empty if there is none. A reply goes to one person."""
    for name, address in getaddresses([text]):
        user, _, domain = address.rpartition("@")
        if user and re.fullmatch(r"[!-~]+", address):
            return str(Address(name, user, domain))
    return ""


def set_header(message: EmailMessage, name: str, text: str) -> None:
    """Set a header to a stranger's text, or leave it out if that would write more than this one header."""
    try:
        # The text was decoded when the email was read. Python would decode it again, and =? is where that begins.
        message[name] = " ".join(printable(text).split()).replace("=?", "= ?")
        _, *continued = message.policy.fold(name, message[name]).splitlines()
        if text and all(line.startswith((" ", "\t")) for line in continued):
            return
    except Exception as problem:  # what strangers write into headers makes Python raise all sorts of errors
        log.warning("Left out the header %s, which cannot be written: %s", name, problem)
    del message[name]
