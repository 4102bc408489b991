"""An agent's conversation, from the state of its entity (the JSON that agent_framework_durabletask writes)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from local_services.dashboard.words import parsed, parsed_time, pretty

PREFIX = "dafx-"  # the names of all agents' entities begin with it


@dataclass(frozen=True)
class Part:
    """A piece of a message: text, a tool call, a tool's result, an error, or something else, as JSON."""

    kind: Literal["text", "call", "result", "error", "other"]
    text: str
    name: str = ""  # of the tool
    call_id: str = ""


@dataclass(frozen=True)
class Entry:
    """One side of a turn: a request to the agent, or its response with all its tool calls."""

    is_request: bool
    author: str
    time: datetime | None
    parts: list[Part]
    tokens: dict[str, int] = field(default_factory=dict)  # input, output, total
    orchestration_id: str = ""


@dataclass(frozen=True)
class Summary:
    """What the list of sessions shows about one of them."""

    agent: str  # the agent's spelling; the entity's name is in lower case
    turns: int
    tokens: int


def entries(state: str | None) -> list[Entry] | None:
    """All messages so far, in order; None if the state is not a conversation."""
    value = parsed(state)
    data = value.get("data") if isinstance(value, dict) else None
    history = data.get("conversationHistory") if isinstance(data, dict) else None
    if not isinstance(history, list):
        return None
    found: list[Entry] = []
    for entry in (_entry(entry) for entry in history if isinstance(entry, dict)):
        # A response has the model's time, in whole seconds: it could be before its request's time.
        before = found[-1].time if found else None
        found.append(replace(entry, time=max(entry.time, before)) if entry.time and before else entry)
    return found


def summary(state: str | None, entity_name: str) -> Summary:
    """The conversation in numbers; all zero if the state is not a conversation."""
    found = entries(state) or []
    authors = [entry.author for entry in found if not entry.is_request and entry.author != "agent"]
    return Summary(
        agent=authors[-1] if authors else entity_name.removeprefix(PREFIX),
        turns=sum(not entry.is_request for entry in found),
        tokens=sum(entry.tokens.get("total", 0) for entry in found),
    )


def _entry(entry: dict[str, Any]) -> Entry:
    is_request = entry.get("$type") == "request"
    messages = [message for message in _list(entry.get("messages")) if isinstance(message, dict)]
    names = [str(message[key]) for key in ("authorName", "role") for message in messages if message.get(key)]
    usage = entry.get("usage") if isinstance(entry.get("usage"), dict) else {}
    return Entry(
        is_request=is_request,
        author=names[0] if names and names[0] != "assistant" else "user" if is_request else "agent",
        time=parsed_time(entry.get("createdAt")),
        parts=[part for message in messages for part in parts(message)],
        tokens={
            kind: count
            for kind in ("input", "output", "total")
            if isinstance(count := (usage or {}).get(f"{kind}TokenCount"), int)
        },
        orchestration_id=str(entry.get("orchestrationId") or ""),
    )


def parts(message: dict[str, Any]) -> Iterator[Part]:
    """The pieces of a message, as the entity stores it (`functionCall`) or as in a response (`function_call`)."""
    for content in _list(message.get("contents")):
        if not isinstance(content, dict):
            yield Part("other", _text(content))
            continue
        call_id = str(content.get("callId") or content.get("call_id") or "")
        match content.get("$type") or content.get("type"):
            case "text":
                yield Part("text", str(content.get("text") or ""))
            case "functionCall" | "function_call":
                name = str(content.get("name") or "a tool")
                yield Part("call", _text(content.get("arguments")), name, call_id)
            case "functionResult" | "function_result":
                yield Part("result", _text(content.get("result")), "", call_id)
            case "error":
                code = content.get("errorCode") or content.get("error_code")
                message_text = str(content.get("message") or "The agent failed without a message.")
                yield Part("error", f"{code}: {message_text}" if code else message_text)
            case "usage":
                pass  # the entry has the sum
            case _:
                yield Part("other", _text(content))


def run_request(payload: str | None) -> str:
    """The message in the input of a call to an agent."""
    value = parsed(payload)
    return str(value.get("message") or "") if isinstance(value, dict) else pretty(payload)


def run_response(payload: str | None) -> tuple[str, str, bool]:
    """Author, text, and whether it is a failure, from the output of a call to an agent."""
    value = parsed(payload)
    messages = _list(value.get("messages")) if isinstance(value, dict) else []
    messages = [message for message in messages if isinstance(message, dict)]
    found = [part for message in messages for part in parts(message)]
    errors = [part.text for part in found if part.kind == "error"]
    author = next((str(message["author_name"]) for message in messages if message.get("author_name")), "")
    return author, "\n".join(errors or [part.text for part in found if part.kind == "text"]), bool(errors)


def _text(value: Any) -> str:
    return pretty(value) if value is None or isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
