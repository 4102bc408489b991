"""Values from the conversation for a JSON schema's property, by the property's name."""

import re
from collections.abc import Iterator
from typing import Any

from local_services.offline_model import memory, travel, writing
from local_services.offline_model.conversation import Conversation, numbers, sentences
from local_services.offline_model.schema import Schema, Suggest

ANSWERS = "answer|response|reply|message|text|content|body|output|result|explanation|description"
REASONS = "reason|reasoning|rationale|why|justification|explanation"


def known_values(conversation: Conversation, answers: dict[str, Any] | None = None) -> Suggest:
    """Proposals for properties: `answers` by a pattern for the name, then what the user said that fits the name."""
    request = conversation.request
    spare_numbers = numbers(request[:2000])

    def suggest(name: str, schema: Schema) -> Iterator[Any]:
        plain = re.sub(r"[^a-z]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")
        for pattern, value in (answers or {}).items():
            if re.fullmatch(pattern, plain):
                yield from value if isinstance(value, tuple) else (value,)
        yield from (
            choice for choice in schema.get("enum", []) if isinstance(choice, str) and choice.lower() in request.lower()
        )
        if schema.get("type") in ("integer", "number") and spare_numbers:
            yield travel.days_of(conversation) if re.search("days|nights|duration", plain) else spare_numbers.pop(0)
        yield from said_about(plain, conversation)

    return suggest


def said_about(name: str, conversation: Conversation) -> Iterator[Any]:
    """What the conversation says about a property with that name."""
    request = conversation.request
    match name.split("_"):
        case [*_, "destination" | "city" | "location" | "place" | "country" | "where"] if place := travel.destination(
            conversation
        ):
            yield place
        case [*_, "date" | "dates" | "when" | "day" | "start" | "from"]:
            yield travel.date_of(conversation)
        case [*_, "days" | "nights" | "duration" | "length"]:
            yield travel.days_of(conversation)
        case ["name"] | ["user" | "customer" | "first" | "person", "name"] if name_of_user := memory.name_of_user(
            conversation
        ):
            yield name_of_user
        case [*_, "topic" | "subject"] if topic := writing.topic_of(request):
            yield topic
        case [*_, "summary"]:
            yield " ".join(sentences(request)[:2])[:300]
        case [*_, "question" | "query" | "prompt" | "input" | "message" | "text" | "expression"]:
            yield request
