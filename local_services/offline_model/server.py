"""Serves the offline model with the protocol of Azure OpenAI and OpenAI: chat completions, streamed or whole.

Every key, deployment and model name is accepted.
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from json import dumps
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from local_services.offline_model.request import ChatRequest
from local_services.offline_model.rules import reply
from local_services.offline_model.schema import Unsupported

LARGEST_BODY = 20_000_000  # bytes
OWN_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE | re.ASCII)
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

    pieces: list[str]
    calls: list[tuple[str, str, list[str]]]  # id, name, pieces of the arguments
    finish: str
    usage: dict[str, int]
    about: dict[str, Any]


def create_app(first_token_delay: float = 0, token_delay: float = 0) -> Starlette:
    """The model as an application. The delays are in seconds: before the first token, and for each later one.

    A streamed answer and a whole one take the same time.
    """
    paces = bool(first_token_delay or token_delay)

    async def chat(request: Request) -> Response:
        asked = await read_request(request)
        answer = make_answer(asked)
        tokens = answer.usage["completion_tokens"]
        if not asked.stream:
            if paces:
                await asyncio.sleep(first_token_delay + token_delay * tokens)
            return JSONResponse(completion(answer))
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        events = [f"data: {dumps(part)}\n\n" for part in chunks(answer, with_usage)] + ["data: [DONE]\n\n"]
        if not paces:
            return Response("".join(events), media_type="text/event-stream")
        return StreamingResponse(paced(events, tokens), media_type="text/event-stream")

    async def paced(events: list[str], tokens: int) -> AsyncIterator[str]:
        # Waits until a time instead of for a time: small delays would add up.
        first = asyncio.get_running_loop().time() + first_token_delay
        for number, event in enumerate(events):
            due = first + token_delay * min(number, tokens)
            await asyncio.sleep(max(0, due - asyncio.get_running_loop().time()))
            yield event

    paths = ["/openai/deployments/{deployment}/chat/completions", "/openai/v1/chat/completions", "/v1/chat/completions"]
    return Starlette(
        routes=[*(Route(path, chat, methods=["POST"]) for path in paths), Route("/", about), Route("/health", about)],
        exception_handlers={Refused: refuse, HTTPException: refuse_path},
    )


async def about(request: Request) -> Response:
    """For a person who opens the address in a browser."""
    check_host(request)
    return PlainTextResponse("The offline model: rule-based, for the samples. POST …/chat/completions asks it.\n")


async def refuse(request: Request, error: Exception) -> Response:
    """The error in the service's format."""
    assert isinstance(error, Refused)
    return JSONResponse({"error": error.error}, error.status)


async def refuse_path(request: Request, error: Exception) -> Response:
    """The path or the method does not exist."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    message = f"Resource not found: {where}. The offline model answers POST …/chat/completions."
    return await refuse(request, Refused(error.status_code, message))


def check_host(request: Request) -> None:
    """Refuse a request to another name, which a web page may have pointed at this machine (DNS rebinding)."""
    if not OWN_HOST.fullmatch(request.headers.get("host", "")):
        raise Refused(403, "The offline model answers at http://127.0.0.1 and http://localhost only.")


async def read_request(request: Request) -> ChatRequest:
    """The request, validated; `model` is the deployment if the path names one. Raises Refused."""
    check_host(request)
    deployment = request.path_params.get("deployment")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not (request.headers.get("api-key") or (scheme.lower() == "bearer" and token.strip())):
        raise Refused(401, NO_AZURE_KEY if request.url.path.startswith("/openai/") else NO_OPENAI_KEY)
    if deployment and not request.query_params.get("api-version"):
        missing = "Missing required query parameter: 'api-version'."
        raise Refused(400, missing, "missing_required_parameter", "api-version")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refused(413, f"The body of your request is larger than {LARGEST_BODY:,} bytes.")
    try:
        given = from_json(bytes(body), allow_inf_nan=False)  # refuses half characters and deep nesting, too
    except ValueError as error:
        raise Refused(400, f"We could not parse the JSON body of your request: {error}.", "invalid_json") from error
    if not isinstance(given, dict):
        raise Refused(400, "Invalid type for the body of your request: expected an object.", "invalid_type")
    try:
        return ChatRequest.model_validate({**given, "model": deployment} if deployment else given)
    except ValidationError as error:
        raise invalid(error) from error


def invalid(error: ValidationError) -> Refused:
    """What to answer to an invalid request: names its first invalid field."""
    problem = error.errors(include_url=False, include_context=False)[0]
    param = ""
    for part in problem["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part.isidentifier() and part.islower() and part != "str":  # not a type's name, as a union has it
            param += f".{part}" if param else part
    if problem["type"] == "missing":
        return Refused(400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param)
    given = problem["input"]
    shown = f", not {given[:40]!r}" if isinstance(given, str) else f", not {given}" if isinstance(given, int) else ""
    message = f"Invalid '{param or 'request'}': {problem['msg'].removeprefix('Value error, ')}{shown}."
    return Refused(
        400, message, "invalid_type" if problem["type"].endswith("_type") else "invalid_value", param or None
    )


def make_answer(asked: ChatRequest) -> Answer:
    """The rules' reply, split into tokens. Raises Refused if they have none for a JSON schema."""
    try:
        said = reply(asked)
    except Unsupported as error:
        where = "response_format" if asked.response_format else "tools"
        raise Refused(400, f"Invalid schema in '{where}': {error}.", "invalid_value", where) from error
    calls = [(f"call_{uuid.uuid4().hex[:24]}", call.name, tokens(call.arguments)) for call in said.tool_calls]
    pieces, finish = tokens(said.text), "tool_calls" if calls else "stop"
    most = asked.max_completion_tokens or asked.max_tokens or len(pieces)
    if len(pieces) > most:
        pieces, finish = pieces[:most], "length"
    count = len(pieces) + sum(len(arguments) + 1 for _, _, arguments in calls)
    about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
    return Answer(pieces, calls, finish, usage(asked, count), {**about, "system_fingerprint": "offline_model"})


def tokens(text: str) -> list[str]:
    """The text in pieces of at most a word and the space before it, as a stream sends them."""
    return re.findall(r"\s*\S{1,16}|\s+", text)


def usage(asked: ChatRequest, output: int) -> dict[str, int]:
    """An estimate, as there is no tokenizer: a token for every four characters of the messages, and four for each."""
    given = sum(4 + len(message.text) // 4 for message in asked.messages)
    return {"prompt_tokens": given, "completion_tokens": output, "total_tokens": given + output}


# The two shapes of an answer, as plain data: the openai package, which has types for them, takes a second to import.


def completion(answer: Answer) -> dict[str, Any]:
    """The answer as a whole."""
    content = None if answer.calls else "".join(answer.pieces)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [
            {"id": id, "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for id, name, arguments in answer.calls
        ]
    choice = {"index": 0, "message": message, "finish_reason": answer.finish, "logprobs": None}
    return {**answer.about, "object": "chat.completion", "choices": [choice], "usage": answer.usage}


def chunks(answer: Answer, with_usage: bool) -> Iterator[dict[str, Any]]:
    """The answer piece by piece: the role, the pieces, the finish reason, and the usage if it is requested."""
    head = {**answer.about, "object": "chat.completion.chunk", **({"usage": None} if with_usage else {})}

    def part(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]}

    yield part({"role": "assistant", "content": None if answer.calls else ""})
    for piece in answer.pieces:
        yield part({"content": piece})
    for index, (id, name, arguments) in enumerate(answer.calls):
        function = {"name": name, "arguments": ""}
        yield part({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
        for piece in arguments:
            yield part({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield part({}, answer.finish)
    if with_usage:
        yield {**head, "choices": [], "usage": answer.usage}
