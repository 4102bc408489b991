"""hosting.chat_client: what is sent to a model is what the package would send, and what goes wrong is said clearly."""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from agent_framework import Agent, AgentResponse, ChatResponse, Message
from agent_framework.openai import OpenAIChatCompletionClient
from conftest import Sample, Start, eventually
from pydantic import BaseModel
from scripted_model import ScriptedModel

Modules = Callable[[str, str], ModuleType]

CALL = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


class Verdict(BaseModel):
    is_spam: bool


def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}, half \ud83d of a smile"


@pytest.fixture(params=["azure", "openai"])
def kind(request: pytest.FixtureRequest, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of model that the environment names."""
    azure = request.param == "azure"
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", model.address if azure else "")
    monkeypatch.setenv("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME", "offline-model")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_API_KEY", "" if azure else "test")
    monkeypatch.setenv("OPENAI_MODEL", "offline-model")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{model.address}/v1")
    monkeypatch.setenv("MODEL_TIMEOUT_SECONDS", "")
    return str(request.param)


azure_only = pytest.mark.parametrize("kind", ["azure"], indirect=True)


@pytest.fixture
def hosting(kind: str, modules: Modules) -> ModuleType:
    return modules("04", "hosting.chat_client")


@pytest.fixture
def errors(hosting: ModuleType, modules: Modules) -> ModuleType:
    return modules("04", "hosting.model_errors")


def plain_client(kind: str, model: ScriptedModel) -> OpenAIChatCompletionClient:
    """The package's client, unchanged."""
    if kind == "azure":
        return OpenAIChatCompletionClient("offline-model", azure_endpoint=model.address, api_key="test")
    return OpenAIChatCompletionClient("offline-model", api_key="test", base_url=f"{model.address}/v1")


def respond(client: Any, *messages: Message, stream: bool = False, **options: Any) -> ChatResponse:
    """What a chat client responds."""

    async def run() -> ChatResponse:
        try:
            if not stream:
                return await client.get_response(messages, options=options)
            return await client.get_response(messages, stream=True, options=options).get_final_response()
        finally:
            await client.client.close()

    return asyncio.run(run())


def run_agent(client: Any, text: str, stream: bool, **options: Any) -> AgentResponse:
    """What an agent answers."""

    async def run() -> AgentResponse:
        agent = Agent(client=client, name="Any", instructions="You answer.", **options)
        try:
            return await (agent.run(text, stream=True).get_final_response() if stream else agent.run(text))
        finally:
            await client.client.close()

    return asyncio.run(run())


# What is sent -----------------------------------------------------------------------------------------------------

SAID = [
    Message("system", ["You answer."]),
    Message("user", ["Is it spam? é 漢 😀"]),
    Message("assistant", ["Perhaps."]),
    Message("user", ["Say yes or no."]),
]


@both_ways
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5, "max_tokens": 7, "instructions": "Be short."},
        {"response_format": Verdict},
        {"tools": [weather], "tool_choice": "auto"},
        {"extra_body": {"custom": {"a": [1]}}},
    ],
    ids=["plain", "options", "structured", "tools", "extra_body"],
)
def test_the_request_is_the_one_that_the_package_would_send(
    options: dict[str, Any], stream: bool, kind: str, hosting: ModuleType, model: ScriptedModel
) -> None:
    model.say('{"is_spam": true}')
    respond(plain_client(kind, model), *SAID, stream=stream, **options)
    answer = respond(hosting.chat_client(stream=stream), *SAID, stream=stream, **options)
    assert answer.text == '{"is_spam": true}'
    plain, ours = model.requests
    assert ours == plain
    assert len(ours["messages"]) == len(SAID) + ("instructions" in options)
    assert options.get("extra_body", {}).items() <= ours.items()


@both_ways
def test_the_messages_of_tools_are_the_same_too(
    stream: bool, kind: str, hosting: ModuleType, model: ScriptedModel
) -> None:
    def sunny(city: str) -> str:
        """The weather."""
        return "Sunny."

    call = {**CALL, "function": {"name": "sunny", "arguments": '{"city": "Rome"}'}}
    for client in (plain_client(kind, model), hosting.chat_client(stream=stream)):
        model.heal()
        calls = [{**call, "index": 0}] if stream else [call]
        model.say("", times=1, said_with={"tool_calls": calls}, finish_reason="tool_calls")
        model.say("It is sunny.")
        assert run_agent(client, "Which weather?", stream, tools=[sunny]).text == "It is sunny."
    assert model.requests[:2] == model.requests[2:]
    assert model.requests[3]["messages"][-1]["content"] == "Sunny."


# Half a character -------------------------------------------------------------------------------------------------


@azure_only
@both_ways
def test_half_a_character_from_the_model_or_a_user_or_a_tool(
    stream: bool, hosting: ModuleType, model: ScriptedModel
) -> None:
    calls = [{**CALL, "index": 0}] if stream else [CALL]
    model.say("", times=1, said_with={"tool_calls": calls}, finish_reason="tool_calls")
    model.say("half \ud83d of a smile")
    answer = run_agent(hosting.chat_client(stream=stream), "half \udce9 of it", stream, tools=[weather])
    assert answer.text == "half \ufffd of a smile"
    sent = model.requests[-1]["messages"]
    assert sent[1]["content"] == "half \ufffd of it"
    assert sent[-1]["content"] == "Sunny in Rome, half \ufffd of a smile"


# What is no answer ------------------------------------------------------------------------------------------------


@azure_only
@both_ways
@pytest.mark.parametrize(
    ("answer", "kind_of_error", "words"),
    [
        ({"reply": "It was a dark", "finish_reason": "length"}, "AnswerUnusable", "cut off at the length"),
        ({"reply": "It was", "finish_reason": "content_filter"}, "ModelRejected", "content filter"),
        ({"reply": "It was a", "finish_reason": None}, "ModelFailed", "cut off half way"),
        ({"reply": ""}, "AnswerUnusable", "empty"),
        ({"reply": " \n"}, "AnswerUnusable", "empty"),
        ({"reply": "", "said_with": {"refusal": "I will not."}}, "AnswerUnusable", "The model refuses: I will not."),
        (
            {"reply": "", "said_with": {"tool_calls": [{**CALL, "index": 0}]}, "finish_reason": "tool_calls"},
            "AnswerUnusable",
            "not offered: weather",
        ),
    ],
    ids=["length", "filter", "no end", "empty", "blank", "refusal", "tool"],
)
def test_what_is_no_answer_is_never_a_success(
    answer: dict[str, Any],
    kind_of_error: str,
    words: str,
    stream: bool,
    hosting: ModuleType,
    errors: ModuleType,
    model: ScriptedModel,
) -> None:
    model.say(**answer)
    with pytest.raises(getattr(errors, kind_of_error), match=re.escape(words)):
        run_agent(hosting.chat_client(stream=stream), "Tell me a story.", stream)


WHOLE = {"id": "x", "object": "chat.completion", "created": 0, "model": "offline-model"}


@azure_only
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (json.dumps({**WHOLE, "choices": None}), {}),
        (json.dumps({**WHOLE, "choices": []}), {}),
        ("<html><body>Sign in first</body></html>", {"content-type": "text/html"}),
        ("no JSON", {}),
        ("[]", {}),
        ("", {}),
    ],
    ids=["null", "no choice", "HTML", "no JSON", "list", "nothing"],
)
def test_something_else_than_an_answer(
    body: str, headers: dict[str, str], hosting: ModuleType, errors: ModuleType, model: ScriptedModel
) -> None:
    model.send(body, headers=headers)
    with pytest.raises(errors.ModelFailed) as error:
        run_agent(hosting.chat_client(), "Hello.", False)
    where = f"offline-model at {model.address}"
    assert str(error.value).startswith(f"{where} does not answer in OpenAI's format") or "cut off" in str(error.value)
    assert "\n" not in str(error.value)


@azure_only
@pytest.mark.parametrize(
    ("status", "kind_of_error", "words"),
    [
        (400, "ModelRejected", "The model rejects the request (400): too long"),
        (413, "ModelRejected", "The model rejects the request (413): too long"),
        (422, "ModelRejected", "The model rejects the request (422): too long"),
        (401, "ModelFailed", "Check its key, your role and the deployment's name"),
        (403, "ModelFailed", "Check its key, your role and the deployment's name"),
        (404, "ModelFailed", "Check its key, your role and the deployment's name"),
        (429, "ModelFailed", "The model failed (429): too long"),
        (503, "ModelFailed", "The model failed (503): too long"),
    ],
)
def test_an_error_is_sorted_by_whether_a_retry_helps(
    status: int,
    kind_of_error: str,
    words: str,
    hosting: ModuleType,
    errors: ModuleType,
    model: ScriptedModel,
) -> None:
    """Streamed, the runtime asks a second time for the whole answer, and gets this."""
    model.fail(status, "too long", headers={"x-should-retry": "false"})
    with pytest.raises(getattr(errors, kind_of_error), match=re.escape(words)) as error:
        run_agent(hosting.chat_client(), "Hello.", False)
    if kind_of_error == "ModelFailed":
        assert model.address in str(error.value)


def test_a_password_in_the_models_address_is_not_in_the_error(
    hosting: ModuleType, errors: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:secret-word@127.0.0.1:9/v1")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://user:secret-word@127.0.0.1:9" if kind == "azure" else "")
    with pytest.raises(errors.ModelFailed) as error:
        run_agent(hosting.chat_client(), "Hello.", False)
    assert "127.0.0.1:9" in str(error.value)
    assert "secret-word" not in str(error.value)
    assert "secret-word" not in hosting.model_in_use()


# A model that is silent -------------------------------------------------------------------------------------------

STREAMING_WORKER = """
import functools, os, sys
sys.path.insert(0, os.getcwd())
import worker
from hosting.chat_client import chat_client
from hosting.program import run
worker.chat_client = functools.partial(chat_client, stream={stream})
run(worker.main)
"""


@pytest.mark.long
@both_ways
def test_a_silent_model_costs_one_timeout(
    stream: bool, sample: Callable[[str], Sample], model: ScriptedModel, start: Start
) -> None:
    """The agent runtime asks a second time, and the openai package would, too."""
    chain = sample("04")
    model.held = threading.Event()
    program = STREAMING_WORKER.format(stream=stream)
    environment = chain.environment(MODEL_TIMEOUT_SECONDS="2")
    worker = start(sys.executable, "-c", program, cwd=chain.folder, env=environment)
    worker.wait_for("Worker ready")
    client = chain.start_client()
    eventually(lambda: model.requests, "the model is asked")
    asked = time.monotonic()
    line = f"No answer from offline-model at {model.address} within 2 s (MODEL_TIMEOUT_SECONDS)."
    eventually(lambda: line in worker.errors, "the attempt has failed")
    assert time.monotonic() - asked < 2 + 1.9, "a second timeout would take longer"
    assert len(model.requests) == 1
    eventually(lambda: f"WriterAgent: {line} Attempt " in client.errors, "the client says what it waits for")
    model.held.set()
    assert client.wait() == 0, client.errors
    worker.stop()
    assert set(worker.errors.splitlines()) == {f"WARNING sample: {line}"}
