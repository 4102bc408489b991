"""What can go wrong with a model, in three kinds, in the model's own words."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agent_framework import ChatContext, ChatMiddleware, ChatResponse
from azure.core.exceptions import ClientAuthenticationError
from openai import APIError, APITimeoutError

from .logs import LoggedError, log
from .program import without_password
from .terminal import clean


class ModelRejected(LoggedError):
    """Something is wrong with the request itself: its parameters or its content. No retry helps."""


class ModelFailed(LoggedError):
    """No answer: busy, unreachable, broken, or set up wrongly (key, role, deployment). Worth a retry, later."""


class AnswerUnusable(LoggedError):
    """An answer that is none: empty, cut off, a refusal, a call of a tool that was not offered. Worth a few tries."""


class ModelErrors(ChatMiddleware):
    """Raises one of the three for whatever goes wrong. The agent runtime stores it, with its name as `error_code`.

    `stream`: whether the model may stream. `limit` (seconds until the first byte), `model`: for the messages.
    """

    def __init__(self, stream: bool, limit: float, model: str) -> None:
        self._stream, self._limit, self._model = stream, limit, model

    async def process(self, context: ChatContext, call_next: Callable[[], Awaitable[None]]) -> None:
        if context.stream and not self._stream:
            # The agent runtime asks for a stream first; after a TypeError about it, it asks for the whole answer.
            raise TypeError("This model does not stream: see chat_client(stream=True).")
        offered = (context.options or {}).get("tools")
        context.stream_transform_hooks.append(_cleaned)
        context.stream_result_hooks.append(lambda response: require_answer(response, offered))
        try:
            await call_next()
            if isinstance(context.result, ChatResponse):
                for message in context.result.messages:
                    _cleaned(message)
                require_answer(context.result, offered)
        except Exception as error:
            problem = error if isinstance(error, LoggedError) else self._sorted(error)
            log.warning("%s", problem)
            raise problem from error

    def _sorted(self, error: Exception) -> Exception:
        cause = error.__cause__ or error
        if isinstance(cause, ClientAuthenticationError):
            why = cause.message.partition("\n")[0]
            return ModelFailed(f"No Azure identity for the model: run 'az login', or set AZURE_OPENAI_API_KEY. {why}")
        if isinstance(cause, (asyncio.TimeoutError, APITimeoutError)) and "Cannot connect" not in str(cause.__cause__):
            return ModelFailed(f"No answer from {self._model} within {self._limit:g} s (MODEL_TIMEOUT_SECONDS).")
        if not isinstance(cause, APIError):
            return ModelFailed(f"{self._model} does not answer in OpenAI's format ({type(cause).__name__}: {cause}).")
        status, body = getattr(cause, "status_code", None), cause.body
        words = str(body.get("message") or cause) if isinstance(body, dict) else str(cause)
        if status is None and cause.__cause__:  # the HTTP library knows what happened to the connection
            words = str(cause.__cause__) or words
        words = clean(without_password(words))
        if status in (400, 413, 422):
            return ModelRejected(f"The model rejects the request ({status}): {words}")
        hint = " Check its key, your role and the deployment's name." if status in (401, 403, 404) else ""
        return ModelFailed(f"The model failed ({status or 'no answer'}): {words}{hint} [{self._model}]")


def _cleaned(part: Any) -> Any:
    """A message, or a piece of one, without halves of characters."""
    for content in part.contents:
        if content.type == "text" and content.text:
            content.text = clean(content.text)
    return part


def require_answer(response: ChatResponse, tools: Any) -> None:
    """Raise if what the model sent is not a whole answer; a call of one of the tools is one."""
    contents = [content for message in response.messages for content in message.contents]
    calls = [content for content in contents if content.type == "function_call"]
    if response.finish_reason is None:  # the SDK takes a stream that breaks off for an answer
        raise ModelFailed("The model's answer was cut off half way.")
    if response.finish_reason == "content_filter":
        raise ModelRejected("The model's content filter withheld the answer.")
    if response.finish_reason == "length":
        raise AnswerUnusable("The model's answer was cut off at the length that the model or its settings allow.")
    if calls and not tools:
        raise AnswerUnusable(f"The model calls a tool that it was not offered: {calls[0].name}.")
    if any(content.additional_properties.get("model_output_kind") == "refusal" for content in contents):
        raise AnswerUnusable(f"The model refuses: {response.text[:500]}")
    if not calls and not response.text.strip():
        raise AnswerUnusable("The model's answer is empty.")
