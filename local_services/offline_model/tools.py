"""Which of the offered tools to call, and with which arguments."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from local_services.offline_model import travel
from local_services.offline_model.conversation import Conversation, capitalized, find
from local_services.offline_model.known import known_values
from local_services.offline_model.schema import NoValue, fill

SAYS_NOTHING = (
    r"^(get|list|set|make|call|tool|function|the|for|with|from|this|that|and|you|your|what|which|when|where|who|how|can|"
    r"could|please|tell|use|are|was|not|all|any|some|its|about|into|out|new)$"
)


@dataclass(frozen=True)
class ToolCall:
    """A tool call of the model; `arguments` is JSON."""

    name: str
    arguments: str


def calls(conversation: Conversation, tools: Iterable[Mapping[str, Any]], choice: Any) -> list[ToolCall]:
    """The calls to make before answering; none if there are results, to prevent endless calls."""
    if conversation.results or choice == "none":
        return []
    functions = [tool["function"] for tool in tools if tool.get("type") == "function"]
    if isinstance(choice, Mapping):
        wanted = [function for function in functions if function["name"] == choice.get("function", {}).get("name")]
    else:
        wanted = [function for function in functions if makes_sense(conversation, function)]
    if choice == "required" and not wanted:
        wanted = functions[:1]
    return [call for function in wanted if (call := call_of(conversation, function))]


def makes_sense(conversation: Conversation, function: Mapping[str, Any]) -> bool:
    """Whether a tool helps with the request: a travel tool for a trip, else one whose name is in the request."""
    name = function["name"].replace("_", " ")
    if find("weather|forecast|event|hotel|flight|restaurant|attraction|activit", name) and travel.is_for(conversation):
        return True
    return bool(words(name) & words(conversation.request)) and not travel.plans(conversation)


def call_of(conversation: Conversation, function: Mapping[str, Any]) -> ToolCall | None:
    """The call with its arguments; None if its parameters cannot be filled in."""
    try:
        arguments = fill(function.get("parameters") or {"type": "object"}, known_values(conversation))
    except NoValue:
        return None
    return ToolCall(function["name"], json.dumps(arguments, ensure_ascii=False))


def answer(conversation: Conversation) -> str:
    """The tools' results, for the user."""
    told = [(capitalized(result.tool.replace("_", " ")), result.text.strip()[:2000]) for result in conversation.results]
    if len(told) == 1:
        return f"{told[0][0]} says: {told[0][1]}"
    return "This is what the tools say:\n\n" + "\n".join(f"- **{name}:** {text}" for name, text in told)


def words(text: str) -> set[str]:
    """The significant words of a text, without their plural s."""
    spoken = re.findall(r"[a-z]{3,30}", text.lower())
    return {word.removesuffix("s") for word in spoken if not find(SAYS_NOTHING, word)}
