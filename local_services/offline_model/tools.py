"""Which of the offered tools to call, and values for their arguments and for JSON properties, by name."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from local_services.offline_model import memory, travel, writing
from local_services.offline_model.conversation import Conversation, capitalized, find, numbers
from local_services.offline_model.request import ChatRequest, ChosenTool, Function
from local_services.offline_model.schema import Schema, Suggest, fill

# Tools with these names are called for these requests; any other one, if a word of its name is in the request.
CALLED_FOR = {
    r"weather|forecast|event|hotel|flight|attraction|activit": travel.is_for,
    r"reserv|table|restaurant|dinner": travel.wants_table,
}
SAYS_NOTHING = (
    r"^(get|list|set|make|call|tool|function|the|for|with|from|this|that|and|you|your|what|which|when|where|who|how|can|"
    r"could|please|tell|use|are|was|not|all|any|some|its|about|into|out|new)$"
)


class ToolCall(NamedTuple):
    """A tool call of the model; `arguments` is JSON."""

    name: str
    arguments: str


def calls(conversation: Conversation, request: ChatRequest) -> list[ToolCall]:
    """The calls to make before answering; none if there are results, to prevent endless calls. Raises Unsupported."""
    functions, choice = [tool.function for tool in request.tools or []], request.tool_choice
    if conversation.results or choice == "none":
        return []
    if isinstance(choice, ChosenTool):
        wanted = [function for function in functions if function.name == choice.function.name]
    else:
        wanted = [function for function in functions if makes_sense(conversation, function)]
    if choice == "required" and not wanted:
        wanted = functions[:1]
    return [call_of(conversation, function) for function in wanted]


def makes_sense(conversation: Conversation, function: Function) -> bool:
    """Whether the user's request needs this tool."""
    name = function.name.replace("_", " ")
    for pattern, is_needed in CALLED_FOR.items():
        if find(pattern, name):
            return is_needed(conversation)
    return bool(words(name) & words(conversation.request))


def call_of(conversation: Conversation, function: Function) -> ToolCall:
    """The call with its arguments."""
    arguments = fill(function.parameters or {"type": "object"}, known_values(conversation))
    return ToolCall(function.name, json.dumps(arguments, ensure_ascii=False))


def answer(conversation: Conversation) -> str | None:
    """The tools' results, for the user."""
    if conversation.results and travel.is_for(conversation):
        return travel.plan(conversation)
    told = [f"{capitalized(tool.replace('_', ' '))}: {text.strip()[:2000]}" for tool, text in conversation.results]
    return "\n\n".join(told) or None


def words(text: str) -> set[str]:
    """The significant words of a text, without their plural s."""
    spoken = re.findall(r"[a-z]{3,30}", text.lower())
    return {word.removesuffix("s") for word in spoken if not find(SAYS_NOTHING, word)}


def known_values(conversation: Conversation, answers: Mapping[str, Iterable[Any]] | None = None) -> Suggest:
    """Proposals for properties: `answers` by a pattern for the name, then what the user said that fits the name."""
    request = conversation.request.lower()
    spare_numbers = numbers(request[:2000])
    said = cache(lambda name: list(said_about(name, conversation)))

    def suggest(name: str, schema: Schema) -> Iterator[Any]:
        plain = re.sub(r"[^a-z]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")
        for pattern, values in (answers or {}).items():
            if re.fullmatch(pattern, plain):
                yield from values
        yield from (choice for choice in schema.choices if isinstance(choice, str) and choice.lower() in request)
        yield from said(plain)
        if spare_numbers and schema.accepts(spare_numbers[0]):
            yield spare_numbers.pop(0)

    return suggest


def said_about(name: str, conversation: Conversation) -> Iterator[Any]:
    """What the conversation says about a property with that name. To teach the model a name, add a case."""
    match name.split("_"):
        case [*_, "destination" | "city" | "location" | "place" | "country" | "where"]:
            yield from filter(None, [travel.destination(conversation)])
        case [*_, "date" | "when" | "day"]:
            yield travel.date_of(conversation)
        case [*_, "time" | "hour"]:
            yield travel.time_of(conversation)
        case [*_, "restaurant"]:
            yield travel.restaurant_of(conversation)
        case [*_, "days" | "nights" | "duration"]:
            yield travel.days_of(conversation)
        case [*_, "people" | "persons" | "guests" | "party" | "size" | "seats"]:
            yield travel.guests_of(conversation)
        case ["name"] | ["user" | "customer" | "first" | "guest", "name"]:
            yield from filter(None, [memory.name_of_user(conversation)])
        case [*_, "topic" | "subject"]:
            yield from filter(None, [writing.topic_of(conversation.request)])
        case [*_, "question" | "query" | "prompt" | "input" | "message" | "text" | "expression"]:
            yield conversation.request
