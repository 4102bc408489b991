"""Sample 06 reads real emails, in every form that mail programs and strangers give them."""

import io
import re
import time
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest


@pytest.fixture
def reader(modules: Callable[[str, str], ModuleType]) -> ModuleType:
    return modules("06", "email_file")


def email(**parts: Any) -> EmailMessage:
    """An email as a mail program writes it."""
    message = EmailMessage()
    message["From"] = parts.get("sender", "Ada <ada@example.com>")
    message["To"] = "john@example.com"
    message["Subject"] = parts.get("subject", "Hello")
    message["Message-ID"] = "<id-1@example.com>"
    if "text" in parts:
        message.set_content(parts["text"], charset=parts.get("charset", "utf-8"))
    return message


class Read(NamedTuple):
    """What has been read."""

    email_id: str
    content: str
    remarks: list[str]


def parse(reader: ModuleType, raw: bytes) -> Read:
    email, remarks = reader.parse_email(raw)
    return Read(email.email_id, email.email_content, remarks)


def body(content: str) -> str:
    return content.partition("\n\n")[2]


def test_a_plain_email(reader: ModuleType) -> None:
    read = parse(reader, email(text="Dear John,\n\nsee you.\n").as_bytes())
    assert re.fullmatch(r"id-1-example-com-[0-9a-f]{16}", read.email_id)
    assert read.content == (
        "From: Ada <ada@example.com>\nTo: john@example.com\nSubject: Hello\nMessage-ID: <id-1@example.com>\n\n"
        "Dear John,\n\nsee you."
    )
    assert read.remarks == []


def test_encoded_headers_and_line_ends(reader: ModuleType) -> None:
    raw = (
        b"From: =?utf-8?q?J=C3=BCrgen_M=C3=BCller?= <j@example.com>\r\n"
        b"Subject: =?iso-8859-1?Q?Gr=FC=DFe?= =?utf-8?B?4oKsIDU=?=\r\n"
        b" continued\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n\r\nLine 1\r\nLine 2\r\n"
    )
    content = parse(reader, raw).content
    assert "From: Jürgen Müller <j@example.com>" in content
    assert "Subject: Grüße€ 5 continued" in content
    assert body(content) == "Line 1\nLine 2"


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252", "utf-16", "koi8-r", "gb18030", "shift_jis"])
@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_encodings(charset: str, encoding: str, reader: ModuleType) -> None:
    text = {"koi8-r": "Привет", "gb18030": "你好", "shift_jis": "こんにちは"}.get(charset, "Grüße, Zoë")
    import base64
    import quopri

    data = text.encode(charset)
    coded = base64.encodebytes(data) if encoding == "base64" else quopri.encodestring(data)
    head = f"Subject: x\nContent-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: {encoding}\n\n"
    assert body(parse(reader, head.encode() + coded).content) == text


@pytest.mark.parametrize(
    "head", [b"", b"Content-Type: text/plain; charset=nonsense\n", b"Content-Type: text/plain; charset=us-ascii\n"]
)
def test_an_encoding_that_is_missing_or_wrong(head: bytes, reader: ModuleType) -> None:
    assert body(parse(reader, b"Subject: x\n" + head + b"\n" + "Zoë".encode()).content) == "Zoë"
    assert body(parse(reader, b"Subject: x\n" + head + b"\n" + "Zoë".encode("cp1252")).content) == "Zoë"


def test_html_only(reader: ModuleType) -> None:
    message = email()
    html = (
        "<html><head><title>No</title><style>p {color: red}</style></head><body><p>Dear&nbsp;John,</p>"
        "<script>alert('no')</script><p>see <b>you</b> &amp; her<br>at <a href='https://example.com/x'>noon</a>.</p>"
        "<ul><li>one<li>two</ul></body></html>"
    )
    message.set_content(html, subtype="html")
    text = body(parse(reader, message.as_bytes()).content)
    assert text == "Dear John,\n\nsee **you** & her\nat [noon](https://example.com/x).\n\n- one\n- two"


def test_both_parts_of_an_alternative_are_judged_if_they_differ(reader: ModuleType) -> None:
    message = email(text="The plain text.")
    message.add_alternative("<p>The HTML, with <a href='http://eve.example/'>a prize</a></p>", subtype="html")
    read = parse(reader, message.as_bytes())
    assert body(read.content) == (
        "The plain text.\n\n[The next part of the email:]\nThe HTML, with [a prize](http://eve.example/)"
    )
    assert read.remarks == []


def test_the_same_text_in_two_forms_is_judged_once(reader: ModuleType) -> None:
    message = email(text="Dear John,\nsee you.")
    message.add_alternative("<p>Dear <b>John</b>,<p>see you.</p>", subtype="html")
    assert body(parse(reader, message.as_bytes()).content) == "Dear John,\nsee you."


def test_a_part_without_headers_is_text(reader: ModuleType) -> None:
    raw = b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nYou have won.\n--b\n\nCall us.\n--b--\n"
    assert body(parse(reader, raw).content) == "You have won.\n\n[The next part of the email:]\nCall us."


def test_no_part_is_pushed_out_by_a_long_one(reader: ModuleType) -> None:
    message = email(text="word " * 20_000)
    message.add_alternative("<p>Claim your prize</p>", subtype="html")
    read = parse(reader, message.as_bytes())
    assert read.content.endswith("Claim your prize")
    assert "only the first 25,000 characters of each part" in read.remarks[0]


def test_blank_plain_text_beside_html(reader: ModuleType) -> None:
    message = email(text=" \n")
    message.add_alternative("<p>The HTML</p>", subtype="html")
    assert body(parse(reader, message.as_bytes()).content) == "The HTML"


def test_attachments_are_named_and_not_read(reader: ModuleType) -> None:
    message = email(text="See the attachments.")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="Übersicht.pdf")
    message.add_attachment("SECRET", filename="notes.txt")
    forwarded = email(text="FORWARDED", subject="Inner")
    message.add_attachment(forwarded)
    read = parse(reader, message.as_bytes())
    assert body(read.content) == "See the attachments."
    assert read.remarks == ["Attachments are not read: Übersicht.pdf, notes.txt, one without a name (message/rfc822)"]


def test_nothing_but_an_attachment(reader: ModuleType) -> None:
    message = email()
    message.set_content(b"GIF89a", maintype="image", subtype="gif", filename="cat.gif")
    read = parse(reader, message.as_bytes())
    assert body(read.content) == "(The email has no text.)"
    assert "cat.gif" in read.remarks[0]


def test_a_long_body_is_cut_and_said_so(reader: ModuleType) -> None:
    read = parse(reader, email(text="é" * 60_000).as_bytes())
    assert body(read.content).startswith("é" * 50_000 + "\n")
    assert "10,000 more characters" in read.content
    assert "only the first 50,000" in read.remarks[0]
    assert parse(reader, email(text="é" * 50_000).as_bytes()).remarks == []


def test_the_same_email_has_the_same_id_and_another_with_its_message_id_has_not(reader: ModuleType) -> None:
    raw = b"Subject: x\nMessage-ID: <1@example.com>\n\nText"
    by_another_way = b"Received: from relay.example\n" + raw
    first, again, other, third = (
        parse(reader, one).email_id for one in (raw, by_another_way, raw + b"!", raw.replace(b"1@", b"2@"))
    )
    assert first == again
    assert len({first, other, third}) == 3
    assert all(re.fullmatch("[a-z0-9-]{6,80}", one) for one in (first, other, third))  # a file name as it is


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \r\n\t\n", "is empty"),
        (b"just some text", "is not an email"),
        (b"Dear John: how are you?\n\nBye", "is not an email"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "is not an email"),
        (b"\x00" * 1000, "is not an email"),
        (b"Subject: x\n\n" + b"x" * 1024 * 1024, "1 MB"),
    ],
)
def test_what_is_no_email(raw: bytes, said: str, reader: ModuleType) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(reader, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain\n\nText",
        b"Subject: x\nContent-Type: multipart/mixed\n\nText",
        b"Subject: x\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n\nVGV4dA",
        b"Subject: x\nContent-Type: nonsense\n\nText",
        b'Subject: x\nContent-Type: text/plain; charset="\xff"\n\nText',
        b"From: \xff\xfe <<>>@@,;\nTo: [,\nSubject: x\nDate: yesterday\nMessage-ID: <\n\nText",
        b"From: =?utf-8?b?////?= <x\nSubject: =?x?y?z?=\n\nText",
        b"\xef\xbb\xbfSubject: x\n\nText",
        b"From someone Mon Jan  1 00:00:00 2030\nSubject: x\n\nText",
        b"Subject: x\x00y\n\nTe\x00xt",
        b"Subject: x\n" + b"Content-Type: message/rfc822\n\n" * 20_000,
        b"Subject: x\nContent-Type: text/plain; name*0*=utf-8''%ff; name*x=1\n\nText",
    ],
)
def test_what_is_half_broken_is_read_as_far_as_possible(raw: bytes, reader: ModuleType) -> None:
    read = parse(reader, raw)
    assert "Text" in read.content or any("Attachment" in remark for remark in read.remarks)
    read.content.encode()
    read.email_id.encode()
    assert "\x00" not in read.content + read.email_id


NESTED = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(300))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"Subject: x\n" + NESTED + b"\n" * 900_000, "too many"),
        (b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\r" * 200_000, "too many"),
        (b"Subject: x\nContent-Type: message/delivery-status\n\n" + b"\n" * 1_000_000, "too many"),
    ],
)
def test_what_is_too_complicated_is_refused_quickly(raw: bytes, said: str, reader: ModuleType) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=said):
        parse(reader, raw)
    assert time.monotonic() - began < 5


def test_many_parts_with_headers_that_are_made_to_be_slow(reader: ModuleType) -> None:
    part = b"--b\nContent-Type: " + b"(=" * 450 + b"\n\nText\n"
    began = time.monotonic()
    assert parse(reader, b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n" + part * 900).content
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "charset", ["punycode", "IDNA", "utf-7", "unicode_escape", "rot13", "zlib", "undefined", "unknown-8bit", "x" * 500]
)
def test_odd_encodings(charset: str, reader: ModuleType) -> None:
    """Some take hours; some give halves of characters, which cannot be stored; some are no encoding of text."""
    head = f'Subject: =?{charset}?b?A?=\nFrom: =?{charset}?q?ab-zz?=\nContent-Type: text/plain; charset="{charset}"\n\n'
    began = time.monotonic()
    read = parse(reader, head.encode() + rb"+2D0- \ud83d Text " + b"ab-zz" * 190_000)
    assert time.monotonic() - began < 5
    assert "Text" in read.content
    read.content.encode()


@pytest.mark.parametrize(
    "unit", ["<", "<a ", "<!--", "&", "<p", "</", "<![CDATA[", "<a href='", "&#x", "<!", "<?", "<script>"]
)
def test_no_html_takes_long(unit: str, reader: ModuleType) -> None:
    raw = b"Subject: x\nContent-Type: text/html\n\n" + (unit * (1_000_000 // len(unit))).encode()
    began = time.monotonic()
    parse(reader, raw)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("head", ["<aaaaaaaaaa", "&#1111111111", "<a href=", "<a href     ", "         ", "<script"])
def test_no_html_takes_long_whose_tag_does_not_end(head: str, reader: ModuleType) -> None:
    raw = b"Subject: x\nContent-Type: text/html\n\n" + (head + head[-1] * 1_000_000).encode()
    began = time.monotonic()
    parse(reader, raw)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "unit", ["(", "<", '"', ",", "=?", "=?utf-8?q?a?= ", "a@b, ", "[", "a:", ";", "\\", "(((", "é"]
)
@pytest.mark.parametrize("name", ["From", "Content-Type: text/plain; charset", "Message-ID", "Content-Disposition"])
def test_no_header_takes_long(name: str, unit: str, reader: ModuleType) -> None:
    for length in (4_900, 900_000):
        raw = f"Subject: x\n{name}: {unit * (length // len(unit.encode()))}\n\nText".encode()
        began = time.monotonic()
        assert parse(reader, raw).content
        assert time.monotonic() - began < 5


def test_files_and_standard_input(reader: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mail.eml"
    file.write_bytes(email(text="Text").as_bytes())
    assert body(reader.read_email(str(file))[0].email_content) == "Text"

    class Stdin:
        buffer = io.BytesIO(email(text="Piped").as_bytes())

    monkeypatch.setattr("sys.stdin", Stdin)
    assert body(reader.read_email("-")[0].email_content) == "Piped"


@pytest.mark.parametrize("name", ["missing.eml", ".", "empty.eml"])
def test_files_that_cannot_be_read(name: str, reader: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "empty.eml").touch()
    with pytest.raises(Exception, match=re.escape(str(tmp_path))) as error:
        reader.read_email(str(tmp_path / name))
    assert type(error.value).__name__ == "UsageError"
