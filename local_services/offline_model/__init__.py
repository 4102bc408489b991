"""The offline model: answers chat requests by rules, without a network. The same request always gets the same answer.

`reply` decides which kind of answer is wanted. For a plain text it tries `RULES` in order: each rule returns its text,
or None if it does not match the request. To extend the model, write a rule and add it there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from local_services.offline_model import experts, jokes, mail, memory, tools, travel, writing
from local_services.offline_model.conversation import Conversation, clip, find, read, sentences
from local_services.offline_model.known import ANSWERS, REASONS, known_values
from local_services.offline_model.schema import NoValue, Schema, fill
from local_services.offline_model.tools import ToolCall

__all__ = ["NoValue", "Reply", "ToolCall", "reply"]

CONNECT = (
    "To connect a real model, set AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_CHAT_DEPLOYMENT_NAME (with "
    "AZURE_OPENAI_API_KEY, or after `az login`); or OPENAI_API_KEY, OPENAI_MODEL and, for another server than "
    "OpenAI's, OPENAI_BASE_URL."
)

NOBODY = ("none", "None", "NONE", "neither", "unknown", "other", None, "")  # how a schema may spell it


@dataclass(frozen=True)
class Reply:
    """The assistant's next message: a text, or tool calls."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


def reply(request: Mapping[str, Any]) -> Reply:
    """The answer to a chat completion request: tool calls, a JSON text for its `response_format`, or a plain text.

    Raises NoValue if no value is known for its JSON schema.
    """
    conversation = read(request["messages"])
    if calls := tools.calls(conversation, request.get("tools") or [], request.get("tool_choice")):
        return Reply(tool_calls=tuple(calls))
    match request.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return Reply(as_json(structured(conversation, schema)))
        case {"type": "json_object"}:
            return Reply(as_json(structured(conversation, object_for(conversation))))
    return Reply(plain(conversation))


def plain(conversation: Conversation) -> str:
    """The answer of the first rule that has one."""
    return next(answer for rule in RULES if (answer := rule(conversation)))


def small_talk(conversation: Conversation) -> str | None:
    """Greetings, thanks, and who this is."""
    request = conversation.request
    if find(r"\b(who|what) are you\b|\byour name\b|are you (an? )?(real|ai|bot|human|model|robot)", request):
        return f"I am the offline model: a set of rules that replaces a language model on this machine. {CONNECT}"
    if find(r"^\W*(hi|hello|hey|good (morning|afternoon|evening)|greetings)\b.{0,40}$", request):
        offers = "Shall I tell you a joke?" if conversation.is_about("joke") else "What can I do for you?"
        return f"Hello! I am the offline model. {offers}"
    if find(r"^\W*(thanks|thank you|thx|great|cool|nice|perfect|ok|okay)\b.{0,40}$", request):
        return "You're welcome."
    if find(r"^\W*(bye|goodbye|see you|good night)\b.{0,40}$", request):
        return "Goodbye! This conversation is stored; come back with its key at any time."
    return None


def on_previous(conversation: Conversation) -> str | None:
    """The previous answer again, shorter or explained as far as rules can."""
    if not conversation.previous:
        return None
    if find(r"\b(shorter|in short|briefly|tl;?dr)\b", conversation.request):
        return f"In short: {clip(sentences(conversation.previous)[0], 300)}"
    if find(r"\b(say|tell|repeat) (that|it|this)\b|\bagain\b|\brepeat\b", conversation.request):
        return f"I said: “{clip(conversation.previous, 1000)}”"
    if find(
        r"\b(explain|simpler|more simply|elaborate|tell me more|example|how did you|go on)\b", conversation.request
    ):
        return (
            f"My answer was: “{clip(conversation.previous, 300)}” The offline model has no rule that says more "
            "about it. " + CONNECT
        )
    return None


def summarize_text(conversation: Conversation) -> str | None:
    """The first sentences of a text to summarize."""
    if find(r"\b(summar(y|i[sz]e)|tl;?dr|sum up)\b", conversation.request):
        text = writing.given_text(conversation)
        return f"In short: {' '.join(sentences(text)[:2])[:500]}" if text else "Which text shall I summarize?"
    return None


def mail_task(conversation: Conversation) -> str | None:
    """Judges or answers an email, if that is the agent's task."""
    if conversation.is_about("spam"):
        is_spam, reason = mail.judge(mail.extract(conversation.last))
        return f"{'Spam' if is_spam else 'Not spam'}. {reason}"
    if conversation.is_about(r"e-?mails?\b"):
        return mail.respond(mail.extract(conversation.last))
    return None


def from_results(conversation: Conversation) -> str | None:
    """An answer from the tools' results, if there are any."""
    if not conversation.results:
        return None
    return travel.plan(conversation) if travel.is_for(conversation) else tools.answer(conversation)


def fallback(conversation: Conversation) -> str:
    """The answer to everything else."""
    about = (
        f"“{clip(conversation.last, 80)}” is beyond its rules" if conversation.last.strip() else "the message is empty"
    )
    return f"This is the offline model, which answers by rules; {about}. {CONNECT}"


RULES = [
    mail_task,  # first: an email is data, whatever it asks for
    memory.summarize_transcript,  # and so is a conversation
    from_results,
    memory.answer,
    summarize_text,
    jokes.answer,
    experts.answer_as_expert,
    writing.answer,
    travel.answer,
    experts.answer,
    small_talk,
    memory.take_note,
    on_previous,
    experts.decline,
    fallback,
]


def structured(conversation: Conversation, schema: Schema | bool) -> Any:
    """A value for a JSON schema, with property values from the task's rules.

    The schema shows the task: a choice of experts, a verdict on spam, an article, a reply to an email.
    """
    names, choices = set(properties_of(schema)), choices_of(schema)
    if expert_names := experts_among(choices):
        field, reason = experts.route(conversation)
        chosen = (expert_names[field.name],) if field else NOBODY
        # For any property name: the first of these that the schema allows.
        answers: dict[str, Any] = {REASONS: reason, "question|query|input": conversation.request, ".*": (*chosen, 0.9)}
    elif any("spam" in name.lower() for name in names):
        is_spam, reason = mail.judge(mail.extract(conversation.last))
        answers = {r"(is_)?spam|spam_detected": is_spam, REASONS: reason, "confidence|score|probability": 0.9}
    elif {"title", "content"} <= names or {"title", "body"} <= names:
        title, content = writing.article(conversation)
        answers = {"title": title, "content|body": content}
    elif conversation.is_about(r"e-?mail") and any(find(f"^({ANSWERS}|draft)$", name) for name in names):
        answers = {f"{ANSWERS}|draft": mail.respond(mail.extract(conversation.last))}
    else:
        answers = {ANSWERS: plain(conversation), REASONS: "The offline model decides by rules."}
    return fill(schema, known_values(conversation, answers))


def object_for(conversation: Conversation) -> Schema:
    """The properties of a JSON object that is requested without a schema."""
    names = ["answer"]
    if conversation.is_about("spam"):
        return {"type": "object", "properties": {"is_spam": {"type": "boolean"}, "reason": {"type": "string"}}}
    if conversation.is_about(r"e-?mail"):
        names = ["response"]
    elif writing.is_article(conversation) or conversation.is_about("'title' and 'content'"):
        names = ["title", "content"]
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}


def properties_of(schema: Any) -> list[str]:
    """The names of all the properties in a schema."""
    if isinstance(schema, list):
        return [name for part in schema for name in properties_of(part)]
    if not isinstance(schema, dict):
        return []
    own = list(schema["properties"]) if isinstance(schema.get("properties"), dict) else []
    return own + [name for part in schema.values() for name in properties_of(part)]


def choices_of(schema: Any) -> list[Any]:
    """The values of all the enums and constants in a schema."""
    if isinstance(schema, list):
        return [choice for part in schema for choice in choices_of(part)]
    if not isinstance(schema, dict):
        return []
    own = (
        list(schema["enum"]) if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    )
    return own + [choice for part in schema.values() for choice in choices_of(part)]


def experts_among(choices: list[Any]) -> dict[str, str]:
    """The choices that are the two experts; empty unless both exist."""
    named = {
        field.name: choice
        for field in (experts.PHYSICS, experts.CHEMISTRY)
        for choice in choices
        if isinstance(choice, str) and find(field.name[:6], choice)
    }
    return named if len(named) == 2 else {}


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
