"""The model that the environment names, ready to be an agent's client."""

import asyncio
import json
from argparse import ArgumentTypeError
from contextvars import ContextVar
from typing import Any

from agent_framework import ChatMiddleware
from agent_framework.openai import OpenAIChatCompletionClient
from openai import DefaultAioHttpClient

from .model_errors import ModelErrors
from .program import UsageError, setting, without_password
from .terminal import clean, seconds


def chat_client(stream: bool = False) -> OpenAIChatCompletionClient:
    """Azure OpenAI, or any server that speaks OpenAI's protocol. Raises UsageError if a setting is missing or wrong.

    Args:
        stream: let the model answer token by token, for a callback that passes the tokens on. Otherwise an answer
            comes whole, which takes less than half of the processor's time.
    """
    try:
        limit = seconds(setting("MODEL_TIMEOUT_SECONDS", "60"))
    except ArgumentTypeError as error:
        raise UsageError(f"MODEL_TIMEOUT_SECONDS: {error}.") from None
    client = _named_by_environment(ModelErrors(stream, limit, model_in_use()))
    # One retry, for a server that is busy or broken for a moment. With hundreds of calls in parallel, the default HTTP
    # client takes three times as long for each.
    client.client = client.client.with_options(http_client=DefaultAioHttpClient(), timeout=limit, max_retries=1)
    completions = client.client.chat.completions
    completions.create = _in_time(completions.create, limit)
    return client


def _named_by_environment(errors: ChatMiddleware) -> OpenAIChatCompletionClient:
    if endpoint := setting("AZURE_OPENAI_ENDPOINT"):
        if not (deployment := setting("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME")):
            raise UsageError("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME is not set: which deployment of AZURE_OPENAI_ENDPOINT?")
        if key := setting("AZURE_OPENAI_API_KEY"):
            identity: dict[str, Any] = {"api_key": key}
        else:
            from azure.identity import DefaultAzureCredential

            identity = {"credential": DefaultAzureCredential()}
        return OpenAIChatCompletionClient(deployment, azure_endpoint=endpoint, middleware=[errors], **identity)
    if key := setting("OPENAI_API_KEY"):
        if not (model := setting("OPENAI_MODEL")):
            raise UsageError("OPENAI_MODEL is not set: which model is OPENAI_API_KEY for?")
        url = setting("OPENAI_BASE_URL") or None
        return OpenAIChatCompletionClient(model, api_key=key, base_url=url, middleware=[errors])
    raise UsageError(
        "No model is set: set AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_CHAT_DEPLOYMENT_NAME, or OPENAI_API_KEY and "
        "OPENAI_MODEL. 'python3 run.py up' in the collection's folder starts one that needs no account."
    )


def model_in_use() -> str:
    """The model that `chat_client` talks to, for a person to read."""
    if endpoint := setting("AZURE_OPENAI_ENDPOINT"):
        return f"{setting('AZURE_OPENAI_CHAT_DEPLOYMENT_NAME')} at {without_password(endpoint)}"
    return f"{setting('OPENAI_MODEL')} at {without_password(setting('OPENAI_BASE_URL', 'OpenAI'))}"


_silent = ContextVar("_silent", default=False)  # the model did not begin to stream in time, in this run of an agent


def _in_time(create: Any, limit: float) -> Any:
    """The openai package's `create`, with a limit to the time until the first byte, and without its slowest part.

    The package walks through every message of a request, which is most of a worker's time in a long conversation. The
    same messages in `extra_body` are sent as they are.
    """

    async def create_in_time(*, messages: Any, extra_body: Any = None, **options: Any) -> Any:
        if _silent.get() and not options.get("stream"):  # the runtime's second request: the time is over already
            _silent.set(False)
            raise asyncio.TimeoutError
        body = {"messages": messages, **(extra_body or {})}
        try:
            return await asyncio.wait_for(create(messages=[], extra_body=body, **options), limit)
        except asyncio.TimeoutError:
            _silent.set(bool(options.get("stream")))
            raise
        except UnicodeEncodeError:  # half of a character, from a tool or from another client
            body = json.loads(clean(json.dumps(body, ensure_ascii=False)))
            return await asyncio.wait_for(create(messages=[], extra_body=body, **options), limit)

    return create_in_time
