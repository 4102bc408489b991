"""Formats times, durations, payloads and failures."""

import json
import re
from datetime import datetime, timezone

from durabletask.task import FailureDetails

LINE = 120  # characters of a text that is shown on one line
UNITS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))  # each with the next smaller one


def now() -> datetime:
    """The current time, with its time zone."""
    return datetime.now(timezone.utc)


def aware(time: datetime) -> datetime:
    """The time with a time zone: the SDK returns some without one, in UTC."""
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def parsed_time(value: object) -> datetime | None:
    """The time in an ISO 8601 text; None if it is not one."""
    # Python 3.10 does not read "Z", and needs six digits of a second's fraction; .NET writes seven.
    text = re.sub(r"\.(\d{1,6})\d*", lambda fraction: f".{fraction[1]:0<6}", str(value).replace("Z", "+00:00"))
    try:
        return aware(datetime.fromisoformat(text))
    except ValueError:
        return None


def ago(time: datetime) -> str:
    """How long ago the time was."""
    seconds = int((now() - time).total_seconds())
    if -2 < seconds < 2:
        return "just now"
    size, unit = next(
        ((size, unit) for size, unit, *_ in UNITS if abs(seconds) >= size),
        (1, "s"),
    )
    return f"{seconds // size} {unit} ago" if seconds > 0 else f"in {duration(-seconds)}"


def exact(time: datetime) -> str:
    """The time on this machine's clock, to the millisecond."""
    local = time.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03} {local:%Z}"


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds == int(seconds) else f"{seconds:.1f} s"
    for size, unit, smaller_size, smaller in UNITS:
        if seconds >= size:
            rest = int(seconds % size // smaller_size)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {smaller}" if rest else "")
    return "0 s"


def pretty(payload: str | None) -> str:
    """A payload for people: JSON is indented, a JSON string becomes its text, anything else stays as it is.

    If a JSON object begins in the second line, as in the custom status of sample 07, it is indented too.
    """
    value = parsed(payload)
    if isinstance(value, str):
        head, newline, rest = value.partition("\n")
        return f"{head}\n{pretty(rest)}" if newline and rest.startswith("{") else value
    return json.dumps(value, indent=2, ensure_ascii=False)


def parsed(payload: object) -> object:
    """The value of a JSON payload, or the payload itself if it is not JSON; None becomes an empty string."""
    if not isinstance(payload, str):
        return "" if payload is None else payload
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload


def line(text: object, length: int = LINE) -> str:
    """The text on one line, of this length at most."""
    words = " ".join(str(text)[: length * 4].split())
    return words if len(words) <= length else words[: length - 1] + "…"


def first_line(payload: str | None) -> str:
    """The first line of a text payload, or a JSON object or array on one line."""
    value = parsed(payload)
    text = value.strip().partition("\n")[0] if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return line(text)


def failure_text(details: FailureDetails | None) -> str:
    """A failure and its causes, one per line, each with its stack trace if there is one."""
    parts: list[str] = []
    while details:
        parts.append(f"{details.error_type}: {details.message}")
        if details.stack_trace:
            parts.append(details.stack_trace.rstrip())
        details = details.inner_failure
    return "\n".join(parts)
