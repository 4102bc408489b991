"""Reads a real email, as mail programs save it (.eml): who wrote what, as text, whatever its form."""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import NamedTuple

from support import UsageError

FILE_LIMIT = 1024 * 1024
"""Bytes: a larger file is refused."""

BODY_LIMIT = 50_000
"""Characters: what is longer is cut. It has to fit into the model's context, and into the scheduler's 1 MB."""

HEADER_LIMIT = 5_000
"""Characters of one header."""

HEADERS = ("From", "Reply-To", "To", "Date", "Subject", "Message-ID")


class ReadEmail(NamedTuple):
    """An email as the orchestration takes it.

    Attributes:
        email_id: its Message-ID, or a fingerprint of the file if it has none; the same file has the same id.
        content: its most important headers, an empty line, and its text.
        remarks: what was left out, for a person to know.
    """

    email_id: str
    content: str
    remarks: list[str]


def read_email(path: str) -> ReadEmail:
    """The email in a file, or in standard input if the path is `-`. Raises UsageError if there is none."""
    try:
        if path == "-":
            raw = sys.stdin.buffer.read(FILE_LIMIT + 1)
        else:
            with Path(path).open("rb") as file:
                raw = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None
    try:
        return parse_email(raw)
    except ValueError as error:
        raise UsageError(f"{'Standard input' if path == '-' else path} {error}") from None


def parse_email(raw: bytes) -> ReadEmail:
    """The email in these bytes. Raises ValueError, whose message goes on where the file's name leaves off."""
    if len(raw) > FILE_LIMIT:
        raise ValueError("has more than 1 MB.")
    raw = raw.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not raw:
        raise ValueError("is empty.")
    try:
        message = message_from_bytes(raw)
        parts = list(_parts(message))
        long = sorted({name for part in [message, *parts] for name in _without_long_headers(part)})
    except RecursionError:
        raise ValueError("is broken: its parts are nested too deeply.") from None
    headers = {name: value for name in HEADERS if (value := _header(message, name))}
    if not {"From", "To", "Subject", "Date"} & headers.keys():
        raise ValueError("is not an email: no From, To, Subject or Date at its top. Save it as .eml, with its headers.")

    body = _body(parts)
    text = _text(body).strip() if body else ""
    remarks = [f"Very long headers are not read: {', '.join(long)}"] if long else []
    if attachments := [_name(part) for part in parts if part is not body and _is_attachment(part)]:
        remarks.append(f"Attachments are not read: {', '.join(attachments)}")
    if len(text) > BODY_LIMIT:
        remarks.append(f"The text has {len(text):,} characters; only the first {BODY_LIMIT:,} are used.")
        text = f"{text[:BODY_LIMIT]}\n[The text was cut here: {len(text) - BODY_LIMIT:,} more characters.]"
    top = "\n".join(f"{name}: {value}" for name, value in headers.items())
    email_id = headers.get("Message-ID", "").strip("<>") or f"sha256-{sha256(raw).hexdigest()[:32]}"
    return ReadEmail(email_id, f"{top}\n\n{text or '(The email has no text.)'}", remarks)


def _without_long_headers(part: Message) -> list[str]:
    """Remove the headers that Python may take minutes to read, and nobody writes; returns their names."""
    long = [name for name, value in part.raw_items() if len(str(value)) > HEADER_LIMIT]
    for name in long:
        del part[name]
    return long


def _header(message: Message, name: str) -> str:
    """The header on one line, decoded as far as that is possible; empty if there is none."""
    value = next((value for its_name, value in message.raw_items() if its_name.lower() == name.lower()), "")
    return _decoded_words(str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _decoded_words(text: str) -> str:
    with suppress(LookupError, ValueError):  # an encoding that nobody knows, or that it is not in
        text = str(make_header(decode_header(text)))
    return " ".join(_clean(text).split())[:1000]


def _parts(part: Message) -> Iterator[Message]:
    """The leaves of the tree of parts; an email that is attached to the email is one, whole."""
    children = part.get_payload()
    if part.get_content_maintype() == "multipart" and isinstance(children, list):
        for child in children:
            assert isinstance(child, Message)
            yield from _parts(child)
    else:
        yield part


def _is_attachment(part: Message) -> bool:
    return bool(part.get_content_disposition() == "attachment" or _file_name(part)) or not _is_text(part)


def _is_text(part: Message) -> bool:
    # A multipart without its parts is a broken one, whose text is still worth reading.
    return part.get_content_maintype() in ("text", "multipart")


def _file_name(part: Message) -> str:
    return _decoded_words(part.get_filename() or "")[:100]


def _name(part: Message) -> str:
    return _file_name(part) or f"one without a name ({part.get_content_type()})"


def _body(parts: list[Message]) -> Message | None:
    """The first part that is plain text and not blank, or else the first in HTML, or any text."""
    texts = [part for part in parts if not _is_attachment(part)]
    for subtype in ("plain", "html"):
        for part in texts:
            if part.get_content_subtype() == subtype and _text(part).strip():
                return part
    return texts[0] if texts else None


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    text = _decoded(payload, part.get_content_charset()) if isinstance(payload, bytes) else str(part.get_payload())
    return _clean(_text_of_html(text) if part.get_content_subtype() == "html" else text)


def _decoded(payload: bytes, declared: str | None) -> str:
    """The text in the encoding that it declares, or in the one that it seems to have."""
    for encoding in (declared or "utf-8", "utf-8"):
        try:
            return payload.decode(encoding)
        except (LookupError, ValueError):
            continue
    return payload.decode("cp1252", errors="replace")


def _clean(text: str) -> str:
    """The text without what no reader sees, and without halves of characters, which no scheduler stores."""
    text = text.encode("utf-8", errors="replace").decode().replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", text)


UNSEEN = ("script", "style", "title", "template")
LINES = ("p", "div", "br", "tr", "li", "table", "ul", "ol", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6")


def _text_of_html(html: str) -> str:
    """The text of a page: its paragraphs as lines, its links with where they lead.

    In one pass, by plain searches: Python's HTMLParser takes hours for a megabyte that is made to be slow.
    """
    pieces: list[str] = []
    link, position = "", 0
    while found := re.compile(r"<!--|<([^<>]*)>").search(html, position):
        pieces.append(_unescaped(html[position : found.start()]))
        position = found.end()
        inside = found[1] or ""
        name = re.match(r"/?[a-z][a-z0-9]{0,20}|", inside.lower())
        tag = name[0] if name else ""
        if found[1] is None:
            position = _after("-->", html, position)
        elif tag in UNSEEN:
            position = _after(f"</{tag}", html, position) - len(tag) - 2
        elif tag.strip("/") in LINES:
            pieces.append("\n")
        elif tag == "a":
            address = re.search(r"href\s*=\s*[\"']?(https?:[^\"'\s]{1,300})", inside, re.IGNORECASE)
            link = _unescaped(address[1]) if address else ""
        elif tag == "/a" and link:
            pieces.append(f" ({link})")  # where a link really leads says much about an email
            link = ""
    pieces.append(_unescaped(html[position:]))
    lines = (" ".join(line.split()) for line in "".join(pieces).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _after(end: str, html: str, position: int) -> int:
    """The position after the next `end`, in whatever case; that of the page's end if there is none."""
    found = re.compile(re.escape(end), re.IGNORECASE).search(html, position)
    return found.end() if found else len(html) + len(end)


def _unescaped(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:  # a character's number with thousands of digits
        return text
