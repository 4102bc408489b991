"""Which rule answers a request. The same request always gets the same answer.

To add a rule, write a function that returns a text, or None if the request is not for it, and add it to `RULES`:

    def flip_coin(conversation: Conversation) -> str | None:
        return "Heads." if find(r"\\bflip a coin\\b", conversation.request) else None
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from local_services.offline_model import experts, jokes, mail, memory, tools, travel, writing
from local_services.offline_model.conversation import Conversation, clip, find, read, sentences
from local_services.offline_model.request import ChatRequest
from local_services.offline_model.schema import fill
from local_services.offline_model.tools import ToolCall, known_values

CONNECT = (
    "To connect a real model, set AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_CHAT_DEPLOYMENT_NAME (with "
    "AZURE_OPENAI_API_KEY, or after `az login`); or OPENAI_API_KEY, OPENAI_MODEL and, for another server than "
    "OpenAI's, OPENAI_BASE_URL."
)
TALK = [
    (
        r"\b(who|what) are you\b|\byour name\b|are you (an? )?(real|ai|bot|human|model|robot)",
        f"I am the offline model: a set of rules that replaces a language model on this machine. {CONNECT}",
    ),
    (
        r"^\W*(hi|hello|hey|good (morning|afternoon|evening)|greetings)\b.{0,40}$",
        "Hello! I am the offline model, which answers by rules. What can I do for you?",
    ),
    (r"^\W*(thanks|thank you|thx|great|cool|nice|perfect|ok|okay)\b.{0,40}$", "You're welcome."),
    (
        r"^\W*(bye|goodbye|see you|good night)\b.{0,40}$",
        "Goodbye! This conversation is stored; come back with its key at any time.",
    ),
]
ANSWERS = "answer|response|reply|message|text|content|body|output|result|explanation|description|draft"
REASONS = "reason|reasoning|rationale|why|justification"
NOBODY = ("none", "None", "NONE", "neither", "unknown", "other", None)  # how a schema may spell it


class Reply(NamedTuple):
    """The assistant's next message: a text, or tool calls."""

    text: str = ""
    tool_calls: Iterable[ToolCall] = ()


def reply(request: ChatRequest) -> Reply:
    """Tool calls, a JSON text for the request's `response_format`, or a plain text.

    Raises Unsupported for a JSON schema that is beyond the model.
    """
    conversation, wanted = read(request.messages), request.response_format
    if calls := tools.calls(conversation, request):
        return Reply(tool_calls=calls)
    if not wanted or wanted.type == "text":
        return Reply(plain(conversation))
    schema = wanted.json_schema.schema_ if wanted.json_schema else object_for(conversation)
    return Reply(json.dumps(structured(conversation, schema), ensure_ascii=False))


def plain(conversation: Conversation) -> str:
    """The answer of the first rule that has one."""
    return next(answer for rule in RULES if (answer := rule(conversation)))


def small_talk(conversation: Conversation) -> str | None:
    """Greetings, thanks, and who this is."""
    return next((answer for pattern, answer in TALK if find(pattern, conversation.request)), None)


def on_previous(conversation: Conversation) -> str | None:
    """A text or the previous answer, shorter; or the previous answer again."""
    request, previous = conversation.request, conversation.previous
    if find(r"\b(summar(y|i[sz]e)|tl;?dr|sum up|shorter|in short|briefly)\b", request):
        text = writing.given_text(conversation)
        return f"In short: {clip(' '.join(sentences(text)[:2]), 500)}" if text else "Which text shall I summarize?"
    if previous and find(r"\b(say|tell|repeat) (that|it|this)\b|\bagain\b|\brepeat\b", request):
        return f"I said: “{clip(previous, 1000)}”"
    return None


def mail_task(conversation: Conversation) -> str | None:
    """Judges or answers an email, if that is the agent's task."""
    if conversation.is_about("spam"):
        is_spam, reason = mail.judge(mail.extract(conversation.last))
        return f"{'Spam' if is_spam else 'Not spam'}. {reason}"
    return mail.respond(mail.extract(conversation.last)) if conversation.is_about(r"e-?mails?\b") else None


def fallback(conversation: Conversation) -> str:
    """The answer to everything else."""
    about = f"“{clip(conversation.last, 80)}” is beyond them" if conversation.last.strip() else "the message is empty"
    return f"This is the offline model, which answers by rules; {about}. {CONNECT}"


RULES = [
    mail_task,  # first: an email is data, whatever it asks for
    memory.summarize_transcript,  # and so is a conversation
    tools.answer,
    memory.answer,
    jokes.answer,
    writing.answer,
    experts.answer,
    travel.answer,
    small_talk,
    memory.take_note,
    on_previous,
    fallback,
]


def structured(conversation: Conversation, schema: dict[str, Any]) -> Any:
    """A value for a JSON schema. The schema shows the task: a choice of experts, a verdict on spam, an article."""
    names, choices = set(names_in(schema, "properties")), list(names_in(schema, "enum"))
    experts_named = {
        field.name: choice for field in experts.FIELDS for choice in choices if find(field.name[:6], choice)
    }
    answers: Mapping[str, Iterable[Any]]  # by a pattern for the name; the first value that the schema accepts is taken
    if len(experts_named) == 2:
        field, reason = experts.route(conversation)
        chosen = [experts_named[field.name]] if field else NOBODY
        answers = {REASONS: [reason], "question|query|input": [conversation.request], ".*": [*chosen, 0.9]}
    elif any("spam" in name.lower() for name in names):
        is_spam, reason = mail.judge(mail.extract(conversation.last))
        answers = {r"(is_)?spam|spam_detected": [is_spam], REASONS: [reason], "confidence|score|probability": [0.9]}
    elif "title" in names and names & {"content", "body"}:
        title, content = writing.article(conversation)
        answers = {"title": [title], "content|body": [content]}
    else:
        answers = {ANSWERS: [plain(conversation)], REASONS: ["The offline model decides by rules."]}
    return fill(schema, known_values(conversation, answers))


def object_for(conversation: Conversation) -> dict[str, Any]:
    """A schema for a JSON object that is requested without one."""
    properties: dict[str, Any] = {"answer": {"type": "string"}}
    if conversation.is_about("spam"):
        properties = {"is_spam": {"type": "boolean"}, "reason": {"type": "string"}}
    elif conversation.is_about(r"e-?mail"):
        properties = {"response": {"type": "string"}}
    elif writing.is_article(conversation):
        properties = {"title": {"type": "string"}, "content": {"type": "string"}}
    return {"type": "object", "properties": properties}


def names_in(schema: Any, keyword: str) -> Iterator[str]:
    """The strings below a keyword, everywhere in a schema: the names of its properties, or the choices of its enums."""
    parts = list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    if isinstance(schema, dict) and isinstance(schema.get(keyword), dict | list):
        yield from (name for name in schema[keyword] if isinstance(name, str))
    for part in parts:
        yield from names_in(part, keyword)
