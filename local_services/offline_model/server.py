"""Serves the offline model with the protocol of Azure OpenAI and OpenAI: chat completions, streamed or whole.

The rules in `offline_model` decide the answers. Every key, deployment and model name is accepted.
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from json import JSONDecodeError, dumps, loads
from typing import Any, Literal, NamedTuple, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from local_services.offline_model import NoValue, reply

FINGERPRINT = "offline_model"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
NO_AZURE_KEY = (
    "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
    "active subscription and use a correct regional API endpoint for your resource."
)
NO_OPENAI_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        # Azure's gateway, which checks path and key, writes errors shorter than the model behind it.
        self.status = status
        self.error: dict[str, Any] = {"code": code or str(status), "message": message}
        if status == 400:
            self.error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


class Answer(NamedTuple):
    """What to send: the pieces of the text, or of each call's arguments, and the other fields."""

    id: str
    model: str
    pieces: list[str]
    calls: list[tuple[str, str, list[str]]]  # id, name, pieces of the arguments
    finish: Literal["stop", "length", "tool_calls"]
    usage: dict[str, int]


def create_app(first_token_delay: float = 0, token_delay: float = 0) -> Starlette:
    """The model as an application. The delays are in seconds: before the first token, and for each later one.

    A streamed answer and a whole one take the same time.
    """
    paces = bool(first_token_delay or token_delay)

    async def chat(request: Request) -> Response:
        asked = await read_request(request)
        answer = make_answer(asked)
        if not asked.get("stream"):
            if paces:
                await asyncio.sleep(first_token_delay + token_delay * answer.usage["completion_tokens"])
            return JSONResponse(completion(answer))
        options = asked.get("stream_options") or {}
        events = [
            f"data: {dumps(part)}\n\n" for part in chunks(answer, with_usage=bool(options.get("include_usage")))
        ] + ["data: [DONE]\n\n"]
        if not paces:
            return Response("".join(events), media_type="text/event-stream")
        return StreamingResponse(paced(events, answer.usage["completion_tokens"]), media_type="text/event-stream")

    async def paced(events: list[str], tokens: int) -> AsyncIterator[str]:
        # Waits until a time instead of for a time: small delays would add up.
        first = asyncio.get_running_loop().time() + first_token_delay
        for number, event in enumerate(events):
            due = first + token_delay * min(number, tokens)
            await asyncio.sleep(max(0, due - asyncio.get_running_loop().time()))
            yield event

    async def about(request: Request) -> Response:
        return PlainTextResponse("The offline model: rule-based, for the samples. POST …/chat/completions asks it.\n")

    return Starlette(
        routes=[
            Route("/openai/deployments/{deployment}/chat/completions", chat, methods=["POST"]),
            Route("/openai/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/", about),
            Route("/health", about),
        ],
        exception_handlers={Refused: refuse, HTTPException: refuse_path},
    )


async def refuse(request: Request, error: Exception) -> Response:
    """The error in the service's format."""
    assert isinstance(error, Refused)
    return JSONResponse({"error": error.error}, error.status)


async def refuse_path(request: Request, error: Exception) -> Response:
    """The path or the method does not exist."""
    assert isinstance(error, HTTPException)
    message = (
        f"Resource not found: {request.method} {request.url.path}. The offline model answers POST …/chat/completions."
    )
    return await refuse(request, Refused(error.status_code, message))


async def read_request(request: Request) -> dict[str, Any]:
    """The request's body, checked; `model` is the deployment if the path names one. Raises Refused."""
    deployment = request.path_params.get("deployment")
    bearer = request.headers.get("authorization", "").partition(" ")
    if not (request.headers.get("api-key") or (bearer[0].lower() == "bearer" and bearer[2].strip())):
        raise Refused(401, NO_AZURE_KEY if request.url.path.startswith("/openai/") else NO_OPENAI_KEY)
    if deployment and not request.query_params.get("api-version"):
        bad("Missing required query parameter: 'api-version'.", "missing_required_parameter", "api-version")
    try:
        asked = loads(await request.body(), parse_constant=no_number)
    except (JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        bad(f"We could not parse the JSON body of your request: {error}.", "invalid_json")
    if not isinstance(asked, dict):
        bad("Invalid type for the body of your request: expected an object.", "invalid_type")
    if deployment:
        asked["model"] = deployment
    check(asked)
    return asked


def no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def bad(message: str, code: str | None = "invalid_value", param: str | None = None) -> NoReturn:
    """Raise the error for a bad request."""
    raise Refused(400, message, code, param)


def check(asked: dict[str, Any]) -> None:
    """Refuse what the real service would refuse, in all fields that the rules use. Raises Refused."""
    if not isinstance(asked.get("model"), str) or not asked["model"]:
        bad("you must provide a model parameter", None, "model")
    if "messages" not in asked:
        bad("Missing required parameter: 'messages'.", "missing_required_parameter", "messages")
    if not isinstance(asked["messages"], list) or not asked["messages"]:
        bad("Invalid 'messages': expected an array with at least one message.", "empty_array", "messages")
    for number, message in enumerate(asked["messages"]):
        check_message(message, f"messages[{number}]")
    check_order(asked["messages"])
    for number, tool in enumerate(asked.get("tools") or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
            bad(f"Invalid 'tools[{number}].function.name': expected letters, digits, '_' and '-'.", param="tools")
    if asked.get("stream_options") is not None and not asked.get("stream"):
        bad("The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options")
    if asked.get("n") not in (None, 1):
        bad("Invalid 'n': the offline model returns one choice.", param="n")
    wanted = asked.get("response_format") or {"type": "text"}
    if not isinstance(wanted, dict) or wanted.get("type") not in ("text", "json_object", "json_schema"):
        bad(
            "Invalid 'response_format.type': supported are 'text', 'json_object' and 'json_schema'.",
            param="response_format",
        )
    if wanted["type"] == "json_schema":
        inner = wanted.get("json_schema")
        if not isinstance(inner, dict) or not inner.get("name") or not isinstance(inner.get("schema"), dict):
            bad(
                "Missing required parameter: 'response_format.json_schema' needs 'name' and 'schema'.",
                param="response_format",
            )


def check_message(message: Any, where: str) -> None:
    """Refuse an invalid message; `where` is its place in the request."""
    if not isinstance(message, dict):
        bad(f"Invalid type for '{where}': expected an object.", "invalid_type", where)
    if message.get("role") not in ROLES:
        supported = ", ".join(f"'{role}'" for role in ROLES)
        bad(f"Invalid value: '{message.get('role')}'. Supported values are: {supported}.", param=f"{where}.role")
    content = message.get("content")
    if content is None and message["role"] != "assistant":
        bad(f"Missing required parameter: '{where}.content'.", "missing_required_parameter", f"{where}.content")
    if not isinstance(content, str | list | None) or (
        isinstance(content, list) and not all(isinstance(part, dict) for part in content)
    ):
        bad(
            f"Invalid type for '{where}.content': expected a string or an array of objects.",
            "invalid_type",
            f"{where}.content",
        )
    for call in message.get("tool_calls") or []:
        try:
            valid = isinstance(call["id"], str) and isinstance(call["function"]["name"], str)
        except (TypeError, KeyError):
            valid = False
        if not valid:
            bad(f"Invalid '{where}.tool_calls': expected 'id' and 'function.name'.", param=f"{where}.tool_calls")


def check_order(messages: list[dict[str, Any]]) -> None:
    """Refuse a tool's result without its call, and a call whose result is missing."""
    waiting: set[str] = set()
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            if message.get("tool_call_id") not in waiting:
                bad(
                    "Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
                    f"'tool_calls'; the 'tool_call_id' of messages[{number}] belongs to none.",
                    None,
                    f"messages[{number}].tool_call_id",
                )
            waiting.discard(message["tool_call_id"])
        elif waiting:
            break
        else:
            waiting = {call["id"] for call in message.get("tool_calls") or []}
    if waiting:
        bad(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. These did not have response messages: {', '.join(sorted(waiting))}",
            None,
            "messages",
        )


def make_answer(asked: dict[str, Any]) -> Answer:
    """The rules' reply, split into tokens. Raises Refused if they have none for the request's JSON schema."""
    try:
        said = reply(asked)
    except NoValue as error:
        bad(
            f"Invalid schema for response_format '{asked['response_format']['json_schema']['name']}': {error}.",
            param="response_format",
        )
    calls = [(f"call_{uuid.uuid4().hex[:24]}", call.name, tokens(call.arguments)) for call in said.tool_calls]
    pieces, finish = tokens(said.text), "tool_calls" if calls else "stop"
    most = asked.get("max_completion_tokens") or asked.get("max_tokens")
    if isinstance(most, int) and len(pieces) > most:
        pieces, finish = pieces[:most], "length"
    count = len(pieces) + sum(len(arguments) + 1 for _, _, arguments in calls)
    return Answer(f"chatcmpl-{uuid.uuid4().hex}", asked["model"], pieces, calls, finish, usage(asked, count))


def tokens(text: str) -> list[str]:
    """The text in pieces of at most a word and the space before it, as a stream sends them."""
    return re.findall(r"\s*\S{1,16}|\s+", text)


def usage(asked: dict[str, Any], completion_tokens: int) -> dict[str, int]:
    """An estimate, as there is no tokenizer. Output: one token for each piece. Input: one for every four characters,
    and four for each message."""
    messages = asked["messages"]
    size = sum(
        len(str(message.get("content") or "")) + len(str(message.get("tool_calls") or "")) for message in messages
    )
    size += len(str(asked.get("tools") or "")) + len(str(asked.get("response_format") or ""))
    prompt_tokens = 4 * len(messages) + size // 4
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


# The two shapes of an answer, as plain data: the openai package, which has types for them, takes a second to import.


def completion(answer: Answer) -> dict[str, Any]:
    """The answer as a whole."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.calls else "".join(answer.pieces),
        "refusal": None,
    }
    if answer.calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for id, name, arguments in answer.calls
        ]
    return {
        "id": answer.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish, "logprobs": None}],
        "usage": answer.usage,
    }


def chunks(answer: Answer, with_usage: bool) -> Iterator[dict[str, Any]]:
    """The answer piece by piece: the role, the pieces, the finish reason, and the usage if it is requested."""
    head = {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": answer.model,
        "system_fingerprint": FINGERPRINT,
    } | ({"usage": None} if with_usage else {})

    def part(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]}

    def call(index: int, function: dict[str, str], **named: str) -> dict[str, Any]:
        return part({"tool_calls": [{"index": index, **named, "function": function}]})

    yield part({"role": "assistant", "content": None if answer.calls else ""})
    for piece in answer.pieces:
        yield part({"content": piece})
    for index, (id, name, arguments) in enumerate(answer.calls):
        yield call(index, {"name": name, "arguments": ""}, id=id, type="function")
        for piece in arguments:
            yield call(index, {"arguments": piece})
    yield part({}, answer.finish)
    if with_usage:
        yield head | {"choices": [], "usage": answer.usage}
