"""Sample 01 end to end: worker, client, scheduler and model as processes of their own."""

import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from agent_framework_durabletask import AgentSessionId, DurableAgentState
from conftest import ROOT, Process, Sample, Start, eventually
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.entities import EntityInstanceId
from scripted_model import ScriptedModel


@pytest.fixture
def joker(sample: Callable[[str], Sample]) -> Sample:
    return sample("01")


def key_of(client: Process) -> str:
    match = re.search(r"^Conversation (\w+)$", client.output, re.MULTILINE)
    assert match, client.output + client.errors
    return match[1]


def answers(client: Process) -> list[str]:
    """What Joker said, answer by answer."""
    return re.findall(r"Joker: (.*?)\n\n", client.output, re.DOTALL)


def texts(request: dict[str, Any]) -> list[str]:
    """The messages of a request to the model, without the agent's instructions."""
    return [message["content"] for message in request["messages"] if message["role"] != "system"]


def stored_turns(joker: Sample, key: str) -> list[tuple[str, str]]:
    """What the scheduler has of a conversation: kind of entry, text."""
    with DurableTaskSchedulerClient(
        host_address=joker.settings["ENDPOINT"],
        taskhub=joker.settings["TASKHUB"],
        token_credential=None,
        secure_channel=False,
    ) as client:
        entity = client.get_entity(EntityInstanceId(AgentSessionId("Joker", key).entity_name, key))
    assert entity
    state = DurableAgentState.from_json(entity.get_state())
    return [
        (str(entry.json_type.value), message.text)
        for entry in state.data.conversation_history
        for message in entry.messages
    ]


# Conversations ----------------------------------------------------------------------------------------------------


def test_the_demonstration_is_two_turns_of_one_conversation(joker: Sample, model: ScriptedModel) -> None:
    worker = joker.start_worker()
    client = joker.run_client()
    assert client.wait() == 0, client.errors
    assert client.errors == ""
    joke, explanation = answers(client)
    assert "pirate" in joke.lower()
    assert joke.split("\n")[0][:40] in explanation
    assert client.output.count("You:   ") == 2
    assert texts(model.requests[-1]) == ["Tell me a joke about a pirate.", joke, "Now explain that joke."]
    assert f"python client.py --session {key_of(client)}" in client.output
    worker.stop()
    assert worker.errors == ""
    assert worker.out[0].startswith("Model: offline-model at http://127.0.0.1")


def test_another_process_continues_the_conversation(joker: Sample) -> None:
    joker.start_worker()
    first = joker.run_client("Tell me a joke about a cat.")
    second = joker.run_client("--session", key_of(first), "What did I ask first?")
    assert second.wait() == 0
    assert "Tell me a joke about a cat." in answers(second)[0]
    assert key_of(second) == key_of(first)


def test_a_conversation_outlives_its_worker(joker: Sample) -> None:
    worker = joker.start_worker()
    key = key_of(joker.run_client("Tell me a joke about a cat."))
    worker.kill()
    joker.start_worker()
    assert "about a cat" in answers(joker.run_client("--session", key, "What did I ask first?"))[0]


def test_two_conversations_do_not_mix(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    cat = joker.run_client("Tell me a joke about a cat.")
    dog = joker.run_client("Tell me a joke about a dog.")
    assert key_of(cat) != key_of(dog)
    joker.run_client("--session", key_of(cat), "Now explain that joke.")
    assert texts(model.requests[-1])[0] == "Tell me a joke about a cat."
    assert not any("dog" in text for text in texts(model.requests[-1]))


def test_a_key_that_names_no_conversation_yet_is_pointed_out(joker: Sample) -> None:
    joker.start_worker()
    client = joker.run_client("--session", "tuesday", "Hello")
    assert client.wait() == 0
    assert "tuesday" in client.errors
    assert "begins" in client.errors
    assert joker.run_client("--session", "tuesday", "Hello again").errors == ""


def test_chat_goes_on_after_an_error(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    client = joker.start_client("--chat")
    assert client.popen.stdin
    model.fail(400, "too funny", matches=lambda request: "poison" in str(request["messages"][-1]["content"]))
    for line in ("Tell me a joke about a cat.", "poison", "", "What did I ask first?", "exit"):
        client.popen.stdin.write(line + "\n")
        client.popen.stdin.flush()
    assert client.wait() == 0, client.errors
    assert "too funny" in client.output
    assert "Tell me a joke about a cat." in answers(client)[-1]
    assert key_of(client)


def test_the_end_of_input_ends_a_chat(joker: Sample) -> None:
    joker.start_worker()
    client = joker.run_client("--chat")
    assert client.wait() == 0
    assert "Traceback" not in client.errors


def test_worker_and_client_in_one_process(joker: Sample) -> None:
    sample = joker.run_client(program="sample.py")
    assert sample.wait() == 0, sample.errors
    assert len(answers(sample)) == 2
    assert sample.errors == ""


# What survives ----------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_of_a_model_call_is_replaced(joker: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    first = joker.start_worker()
    client = joker.start_client("Tell me a joke about a pirate.")
    eventually(lambda: model.requests, "the model is asked")
    first.kill()
    joker.start_worker()
    eventually(lambda: len(model.requests) == 2, "the model is asked again")
    model.held.set()
    assert client.wait() == 0, client.errors
    (joke,) = answers(client)
    assert stored_turns(joker, key_of(client)) == [
        ("request", "Tell me a joke about a pirate."),
        ("response", joke),
    ]


def test_a_question_asked_while_no_worker_runs_is_answered_when_one_does(joker: Sample) -> None:
    client = joker.start_client("Tell me a joke about a cat.")
    client.wait_for("You: ")
    joker.start_worker()
    assert client.wait() == 0
    assert answers(client)


def test_a_stopping_worker_hands_its_work_back_at_once_and_ends_in_bounded_time(
    joker: Sample, model: ScriptedModel
) -> None:
    model.held = threading.Event()
    worker = joker.start_worker()
    client = joker.start_client("Hello")
    eventually(lambda: model.requests, "the model is asked")
    joker.start_worker()
    worker.signal(signal.SIGTERM)
    eventually(lambda: len(model.requests) == 2, "the other worker asks")
    assert worker.popen.poll() is None, "the first had time left to end in"
    assert worker.wait(30) == 0
    assert worker.errors == ""
    model.held.set()
    assert client.wait() == 0


def test_a_client_that_leaves_finds_its_answer_later(joker: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    joker.start_worker()
    client = joker.start_client("Tell me a joke about a cat.")
    eventually(lambda: model.requests, "the model is asked")
    client.signal(signal.SIGINT)
    assert client.wait() == 130, client.errors
    model.held.set()
    later = joker.run_client("--session", key_of(client), "What did I ask first?")
    assert "Tell me a joke about a cat." in answers(later)[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_worker_stops_when_told(number: int, joker: Sample) -> None:
    worker = joker.start_worker()
    worker.signal(number)
    assert worker.wait(10) == 0
    assert worker.errors == ""


def test_a_forgotten_worker_with_other_agents_does_no_harm(joker: Sample, start: Start, tmp_path: Path) -> None:
    source = (joker.folder / "worker.py").read_text().replace('"Joker"', '"Stranger"')
    (tmp_path / "worker.py").write_text(source)
    for name in ("support.py", "long_conversation.py"):
        (tmp_path / name).write_text((joker.folder / name).read_text())
    stranger = start(sys.executable, "worker.py", cwd=tmp_path, env=joker.environment())
    stranger.wait_for("Worker ready")
    client = joker.start_client("Hello")
    client.wait_for("You: ")
    joker.start_worker()
    assert client.wait() == 0
    assert answers(client)


def test_many_model_calls_are_under_way_at_once(
    joker: Sample, model: ScriptedModel, modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in joker.settings.items():
        monkeypatch.setenv(name, value)
    support = modules("01", "support")
    model.held = threading.Event()
    joker.start_worker()
    agents = support.agent_client(["Joker"])
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(agents.get_agent("Joker").run, f"Joke number {number}") for number in range(30)]
        eventually(lambda: len(model.requests) == 30, "30 calls under way")
        model.held.set()
        assert all(answer.result().text for answer in asked)


# What goes wrong --------------------------------------------------------------------------------------------------


def assert_one_line(process: Process, code: int, *words: str) -> None:
    """The program ended with that code, and one line on stderr that says this."""
    assert process.wait() == code, process.output + process.errors
    assert process.errors.count("\n") == 1, process.errors
    for word in words:
        assert word in process.errors


def test_a_scheduler_that_is_not_there(joker: Sample) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else can take the port
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert_one_line(joker.run_client(ENDPOINT=endpoint), 2, endpoint, "run.py up", "docker compose")
        worker = joker.start_client(program="worker.py", ENDPOINT=endpoint)
        assert_one_line(worker, 2, endpoint)


def test_a_scheduler_that_is_silent(joker: Sample) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert_one_line(joker.run_client(ENDPOINT=endpoint), 2, endpoint)
        assert time.monotonic() - began < 10


def test_something_else_at_the_schedulers_address(joker: Sample, model: ScriptedModel) -> None:
    assert_one_line(joker.run_client(ENDPOINT=model.address), 2, model.address)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"AZURE_OPENAI_ENDPOINT": ""}, "AZURE_OPENAI_ENDPOINT"),
        ({"AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": ""}, "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME"),
        ({"AZURE_OPENAI_ENDPOINT": "", "OPENAI_API_KEY": "key"}, "OPENAI_MODEL"),
        ({"ENDPOINT": "localhost:8080"}, "ENDPOINT"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
    ],
)
def test_a_missing_or_wrong_setting(settings: dict[str, str], named: str, joker: Sample) -> None:
    worker = joker.start_client(program="worker.py", **settings)
    assert_one_line(worker, 2, named)


def test_an_openai_compatible_server_instead(joker: Sample, model: ScriptedModel) -> None:
    settings = {"AZURE_OPENAI_ENDPOINT": "", "OPENAI_BASE_URL": f"{model.address}/v1", "OPENAI_API_KEY": "key"}
    worker = joker.start_worker(**settings, OPENAI_MODEL="llama")
    assert worker.out[0] == f"Model: llama at {model.address}/v1\n"
    assert joker.run_client("Hello").wait() == 0
    assert model.requests[0]["model"] == "llama"


def test_azure_openai_wins_where_both_are_set(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker(OPENAI_BASE_URL="http://127.0.0.1:9", OPENAI_API_KEY="key", OPENAI_MODEL="llama")
    assert joker.run_client("Hello").wait() == 0
    assert model.requests


@pytest.mark.parametrize("arguments", [[""], ["--session", "", "Hello"], ["--session", "a@b", "Hello"]])
def test_arguments_that_make_no_sense(arguments: list[str], joker: Sample) -> None:
    client = joker.run_client(*arguments)
    assert client.wait() == 2
    assert "Traceback" not in client.errors
    assert client.errors


def test_no_worker(joker: Sample) -> None:
    client = joker.run_client("--timeout", "0.5", "Hello")
    assert_one_line(client, 1, "No answer from Joker within 0.5 s", "python worker.py")
    assert "Joker:" not in client.output


def test_a_wrong_key_is_said_in_the_models_words(joker: Sample, model: ScriptedModel) -> None:
    model.fail(401, "Access denied due to invalid subscription key")
    worker = joker.start_worker()
    assert_one_line(joker.run_client("Hello"), 1, "401", "Access denied due to invalid subscription key")
    assert len(model.requests) == 1  # a rejected call is not tried again
    worker.stop()
    assert "Access denied" in worker.errors
    assert "Traceback" not in worker.errors


def test_a_wrong_deployment_is_said_in_the_models_words(joker: Sample, model: ScriptedModel) -> None:
    model.fail(404, "The API deployment for this resource does not exist.")
    joker.start_worker()
    assert_one_line(joker.run_client("Hello"), 1, "404", "The API deployment for this resource does not exist.")


def test_no_identity_for_the_model(joker: Sample, tmp_path: Path) -> None:
    # The environment's credential is tried alone, and has nothing to go by; a machine in Azure would have others.
    nobody = {"AZURE_OPENAI_API_KEY": "", "AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential", "HOME": str(tmp_path)}
    joker.start_worker(**nobody)
    assert_one_line(joker.run_client("Hello"), 1, "az login", "AZURE_OPENAI_API_KEY")


def test_a_model_out_of_reach(joker: Sample) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        joker.start_worker(AZURE_OPENAI_ENDPOINT=endpoint)
        assert_one_line(joker.run_client("Hello"), 1, "Cannot connect", endpoint)


def test_a_model_that_recovers_is_asked_again(joker: Sample, model: ScriptedModel) -> None:
    model.fail(500, times=2)
    joker.start_worker()
    assert joker.run_client("Hello").wait() == 0


def test_the_conversation_goes_on_after_a_failed_turn(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    key = key_of(joker.run_client("My name is Ada."))
    model.fail(400, "no")
    assert joker.run_client("--session", key, "What is my name?").wait() == 1
    model.heal()
    again = joker.run_client("--session", key, "What is my name?")
    assert "Ada" in answers(again)[0]


def test_half_an_answer_is_never_stored(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    whole = joker.run_client("Tell me a joke about a pirate.")
    model.break_off(after=4)
    client = joker.run_client("Tell me a joke about a pirate.")
    assert client.wait() == 0, client.errors
    assert answers(client) == answers(whole)
    assert stored_turns(joker, key_of(client))[-1] == ("response", answers(client)[0])
    assert len(model.requests) == 3


def test_an_answer_without_an_end_is_an_error(joker: Sample, model: ScriptedModel) -> None:
    model.truncate(after=4)
    joker.start_worker()
    assert_one_line(joker.run_client("Tell me a joke about a pirate."), 1, "cut off half way")


def test_debug_logs_on_demand(joker: Sample) -> None:
    worker = joker.start_worker(LOG_LEVEL="debug")
    joker.run_client("Hello")
    worker.stop()
    assert "DEBUG agent_framework" in worker.errors


def test_no_secret_is_printed(joker: Sample) -> None:
    worker = joker.start_worker(LOG_LEVEL="debug", AZURE_OPENAI_API_KEY="s3cr3t-key")
    client = joker.run_client("Hello", LOG_LEVEL="debug", AZURE_OPENAI_API_KEY="s3cr3t-key")
    worker.stop()
    assert "s3cr3t-key" not in worker.output + worker.errors + client.output + client.errors


def test_the_folder_runs_alone(joker: Sample, start: Start, tmp_path: Path) -> None:
    """Copied out, with a .env beside it, away from the collection."""
    for file in joker.folder.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in joker.settings.items()))
    environment = {name: value for name, value in joker.environment().items() if name not in joker.settings}
    worker = start(sys.executable, "worker.py", cwd=tmp_path, env=environment)
    worker.wait_for("Worker ready")
    client = start(sys.executable, tmp_path / "client.py", "Hello", cwd=ROOT, env=environment)
    assert client.wait() == 0, client.errors
    assert json.dumps(answers(client)[0])
