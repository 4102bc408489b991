"""A chat request as a conversation for the rules, and functions that read and shorten text."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A message that replaces the older messages.
SUMMARY = r"^\W{0,3}(the )?summary of (our|the|this) conversation\b.{0,80}:\n"
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool call."""

    tool: str
    text: str


@dataclass(frozen=True)
class Conversation:
    """All messages, oldest first."""

    instructions: str
    asked: list[str]
    answered: list[str]
    results: list[ToolResult]  # of the calls that followed the user's last message
    summary: str = ""  # of older messages

    @property
    def last(self) -> str:
        """The user's complete last message."""
        return self.asked[-1] if self.asked else ""

    @property
    def request(self) -> str:
        """The last message; only the beginning and the end of a very long one."""
        return self.last if len(self.last) <= 4000 else f"{self.last[:3000]}\n{self.last[-1000:]}"

    @property
    def previous(self) -> str:
        """The last answer, or an empty string."""
        return self.answered[-1] if self.answered else ""

    def is_about(self, pattern: str) -> bool:
        """Whether the agent's instructions name its field."""
        return bool(find(pattern, self.instructions))


def read(messages: Iterable[Mapping[str, Any]]) -> Conversation:
    """The conversation of a request's `messages`."""
    instructions: list[str] = []
    asked: list[str] = []
    answered: list[str] = []
    results: list[ToolResult] = []
    tools: dict[str, str] = {}
    summary = ""
    for message in messages:
        said = text_of(message.get("content"))
        match message["role"]:
            case "system" | "developer":
                instructions.append(said)
            case "user" if find(SUMMARY, said[:200]):
                summary = said.partition("\n")[2]
            case "user":
                asked.append(said)
                results = []
            case "assistant":
                if said.strip():
                    answered.append(said)
                for call in message.get("tool_calls") or []:
                    tools[call["id"]] = call["function"]["name"]
            case _:
                results.append(ToolResult(tools.get(message.get("tool_call_id", ""), "tool"), said))
    return Conversation("\n".join(instructions), asked, answered, results, summary)


def text_of(content: str | list[Any] | None) -> str:
    """The text of a message's content: a string, a list of parts, or nothing."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""


def find(pattern: str, text: str) -> re.Match[str] | None:
    """Search without regard to case. All patterns have bounded repeats, so that a megabyte is fast."""
    return re.search(pattern, text, re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text, line by line, without the dashes of a list."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", text)
    return [part for part in (part.strip(" \t\r-*•") for part in parts) if part]


def clip(text: str, limit: int = 200) -> str:
    """The text on one line, cut to `limit` characters with an ellipsis."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def capitalized(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def numbers(text: str) -> list[int | float]:
    """The numbers in a text, in digits or in words up to ten."""
    found = re.findall(rf"(?<![\w.])-?\d{{1,15}}(?:\.\d{{1,15}})?|\b(?:{'|'.join(NUMBER_WORDS)})\b", text.lower())
    return [NUMBER_WORDS.index(word) if word in NUMBER_WORDS else json.loads(plain(word)) for word in found]


def plain(digits: str) -> str:
    """Digits without leading zeros, as in JSON."""
    return re.sub(r"^(-?)0+(?=\d)", r"\1", digits)
