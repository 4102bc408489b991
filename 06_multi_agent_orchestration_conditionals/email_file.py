"""Reads a real email, as mail programs save it (.eml): who wrote what, as text."""

import re
import sys
from collections.abc import Iterator
from email import message_from_bytes
from email.message import MIMEPart
from email.policy import EmailPolicy
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

from hosting.program import UsageError
from hosting.terminal import printable

from justhtml import JustHTML
from models import Email

FILE_LIMIT = 1024 * 1024  # bytes
BODY_LIMIT = 50_000  # characters: they have to fit into the model's context, and into the scheduler's 1 MB
HTML_LIMIT = 200_000  # characters of one part
HEADER_LIMIT = 2_000  # characters: Python's parser takes minutes for longer ones that are made to be slow
HEADERS = ("From", "Reply-To", "To", "Date", "Subject", "Message-ID", "Auto-Submitted", "Precedence", "List-Id")


class Tolerant(EmailPolicy):
    """Python's reading of headers, where one that it cannot read is empty."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        text = value[:HEADER_LIMIT].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        try:
            # Those of the MIME structure are many in a large email, and Python reads their plain text faster.
            return text if name.lower().startswith("content-") else super().header_fetch_parse(name, text)
        except Exception:  # what strangers write into headers makes it raise all sorts of errors
            return ""


def read_email(path: str) -> tuple[Email, list[str]]:
    """The email in a file, or in standard input if the path is `-`; and remarks on what was left out.

    Raises UsageError if there is none, or if it is too large or too complicated.
    """
    try:
        with sys.stdin.buffer if path == "-" else Path(path).open("rb") as file:
            return parse_email(file.read(FILE_LIMIT + 1))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"{'Standard input' if path == '-' else path} {error}") from None


def parse_email(raw: bytes) -> tuple[Email, list[str]]:
    """The email in these bytes, and remarks. Raises ValueError, whose message continues after the file's name."""
    if len(raw) > FILE_LIMIT:
        raise ValueError("has more than 1 MB.")
    if not (raw := raw.removeprefix(b"\xef\xbb\xbf").lstrip()):
        raise ValueError("is empty.")
    # Counted before it is parsed, since thousands of nested or empty parts take minutes.
    for pattern, most in ((rb"(?i)boundary[\s*0-9]*=", 20), (rb"(^|[\r\n])--", 1_000), (rb"\r\n|[\r\n]", 50_000)):
        if sum(1 for _ in re.finditer(pattern, raw)) > most:
            raise ValueError("has too many parts or lines.")
    message: Any = message_from_bytes(raw, policy=Tolerant())
    headers = {name: line for name in HEADERS if (line := one_line(message.get(name)))}
    if not {"From", "To", "Subject", "Date"} & headers.keys():
        raise ValueError("is not an email: no From, To, Subject or Date at its top. Save it as .eml, with its headers.")

    texts: dict[str, str] = {}  # by their words: of a text that comes as HTML too, both are judged if they differ
    attachments: list[str] = []
    for part in leaves(message):
        if is_attachment(part):
            name = message.policy.header_fetch_parse("Filename", (part.get_filename() or "")[:200])
            attachments.append(one_line(name) or f"one without a name ({part.get_content_type()})")
        elif text := text_of(part):
            texts.setdefault(" ".join(re.findall(r"\w+", text)), text)
    remarks = [f"Attachments are not read: {', '.join(attachments)[:1000]}"] if attachments else []
    if sum(map(len, texts.values())) > BODY_LIMIT:
        most = BODY_LIMIT // len(texts)
        remarks.append(
            f"The text is long: only the first {most:,} characters{' of each part' * (len(texts) > 1)} are used."
        )
        texts = {words: cut(text, most) for words, text in texts.items()}
    top = "\n".join(f"{name}: {line}" for name, line in headers.items())
    body = "\n\n[The next part of the email:]\n".join(texts.values())
    content = f"{top}\n\n{body or '(The email has no text.)'}"
    # The same email has the same id; another one that claims the same Message-ID has not.
    readable = re.sub(r"[^a-z0-9]+", "-", (headers.get("Message-ID") or headers.get("Subject", "")).lower())
    email_id = f"{readable[:40].strip('-')}-{sha256(content.encode()).hexdigest()[:16]}"
    return Email(email_id=email_id, email_content=content), remarks


def one_line(header: Any) -> str:
    """A header's text on one line."""
    return " ".join(printable(header or "").split())


def cut(text: str, most: int) -> str:
    """The text, or its first characters and a remark."""
    return (
        text if len(text) <= most else f"{text[:most]}\n[The text was cut here: {len(text) - most:,} more characters.]"
    )


def leaves(part: MIMEPart) -> Iterator[MIMEPart]:
    """The parts that have no parts of their own; an email that is attached to the email counts as one."""
    if part.get_content_maintype() == "multipart" and part.is_multipart():
        for child in part.iter_parts():
            yield from leaves(child)
    else:
        yield part


def is_attachment(part: MIMEPart) -> bool:
    """Whether a person sees it as a file. A multipart without parts is a broken one, whose text is still read."""
    named = part.get_content_disposition() == "attachment" or part.get_filename()
    return bool(named) or part.get_content_maintype() not in ("text", "multipart")


def text_of(part: MIMEPart) -> str:
    """The text of a part; of HTML, as Markdown, which says where links lead."""
    payload, charset = part.get_payload(decode=True), part.get_content_charset() or "utf-8"
    text = decoded(payload, charset) if isinstance(payload, bytes) else str(payload)
    if part.get_content_subtype() == "html":
        text = unescape(JustHTML(text[:HTML_LIMIT]).to_markdown())
    return printable("\n".join(text.replace("\xa0", " ").splitlines())).strip()


def decoded(payload: bytes, charset: str) -> str:
    """The text in the encoding that it declares, or else in the one that it seems to have."""
    for encoding in ("utf-8" if charset in ("idna", "punycode") else charset, "utf-8"):  # those two take hours
        try:
            return payload.decode(encoding)
        except (LookupError, ValueError):
            continue
    return payload.decode("cp1252", errors="replace")
