"""A request's messages as a conversation for the rules, and functions that read and shorten text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from local_services.offline_model.request import Message

# How a message begins that replaces the older messages.
SUMMARY = r"^\W{0,3}(the )?summary of (our|the|this) conversation\b.{0,80}:\n"
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass
class Conversation:
    """All messages, oldest first."""

    instructions: str = ""
    asked: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)  # tool and text, since the user's last message
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

    def latest(self, pattern: str) -> re.Match[str] | None:
        """The pattern in the user's newest message that has it."""
        return next(filter(None, (find(pattern, text[:4000]) for text in reversed(self.asked))), None)


def read(messages: Iterable[Message]) -> Conversation:
    """The conversation in a request's messages."""
    conversation = Conversation()
    tools: dict[str | None, str] = {}  # by the id of their call
    for message in messages:
        text = message.text
        match message.role:
            case "system" | "developer" if not conversation.asked:
                conversation.instructions += f"{text}\n"
            case "user" if find(SUMMARY, text[:200]):
                conversation.summary = text.partition("\n")[2]
            case "user" | "system" | "developer":  # a notice in the middle of a conversation is answered, too
                conversation.asked.append(text)
                conversation.results = []
            case "assistant":
                tools |= {call.id: call.function.name for call in message.tool_calls or []}
                if text.strip():
                    conversation.answered.append(text)
            case _:
                conversation.results.append((tools.get(message.tool_call_id, "tool"), text))
    return conversation


def find(pattern: str, text: str) -> re.Match[str] | None:
    """Search without regard to case. All patterns have bounded repeats, so that a megabyte is fast."""
    return re.search(pattern, text, re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text, line by line, without the dashes of a list."""
    parts = (part.strip(" \t\r-*•") for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return [part for part in parts if part]


def clip(text: str, limit: int = 200) -> str:
    """The text on one line, cut to `limit` characters with an ellipsis."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def capitalized(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def numbers(text: str) -> list[int | float]:
    """The numbers in a text, in digits or in words up to ten."""
    found = re.findall(rf"(?<![\w.])-?\d{{1,15}}(?:\.\d{{1,15}})?|\b(?:{'|'.join(NUMBER_WORDS)})\b", text, re.I | re.A)
    values = [NUMBER_WORDS.index(word) if word in NUMBER_WORDS else float(word) for word in map(str.lower, found)]
    return [int(value) if value == int(value) else value for value in values]
