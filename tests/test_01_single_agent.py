"""Sample 01 end to end: worker, client, scheduler and model are separate processes."""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from agent_framework_durabletask import AgentSessionId
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
    return [
        (entry["$type"], "".join(content.get("text", "") for content in message["contents"]))
        for entry in json.loads(entity.get_state() or "")["data"]["conversationHistory"]
        for message in entry["messages"]
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


def test_worker_and_client_in_one_process(joker: Sample) -> None:
    sample = joker.run_client(program="sample.py")
    assert sample.wait() == 0, sample.errors
    assert len(answers(sample)) == 2
    assert sample.errors == ""


# --chat -----------------------------------------------------------------------------------------------------------


def type_lines(client: Process, *lines: str) -> None:
    assert client.popen.stdin
    for line in lines:
        client.popen.stdin.write(line + "\n")
    client.popen.stdin.flush()


class Terminal:
    """client.py at a terminal."""

    def __init__(self, sample: Sample, *arguments: str, program: str = "client.py") -> None:
        self.output = ""
        self._screen, keyboard = pty.openpty()
        # The first process of a session that opens a terminal is the one that its Ctrl-C interrupts.
        opening = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", opening, os.ttyname(keyboard), sys.executable, program, *arguments],
            cwd=sample.folder,
            env=sample.environment(TERM="xterm"),
            stdin=keyboard,
            stdout=keyboard,
            stderr=keyboard,
            start_new_session=True,
        )
        os.close(keyboard)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # its end
            while piece := os.read(self._screen, 65536):
                self.output += piece.decode(errors="replace")

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._screen, text.encode())

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until it is on the screen, so many times."""
        eventually(lambda: self.output.count(text) >= times, f"{text!r} in {self.output!r}")

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self.popen.wait(60)
        self._reader.join(5)
        os.close(self._screen)
        return code


def test_a_chat_continues_after_an_error(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    client = joker.start_client("--chat")
    model.fail(400, "too funny", matches=lambda request: "poison" in str(request["messages"][-1]["content"]))
    type_lines(client, "Tell me a joke about a cat.", "poison", "", "What did I ask first?", "exit")
    assert client.wait() == 0, client.errors
    assert "too funny" in client.output
    assert "Tell me a joke about a cat." in answers(client)[-1]
    assert len(model.requests) == 3, "an empty line is no message"
    assert f"python client.py --session {key_of(client)}" in client.output


def test_a_chat_continues_after_a_message_that_is_too_large(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    client = joker.start_client("--chat")
    type_lines(client, "Tell me a joke about a cat.", "é" * 300_000, "What did I ask first?")
    assert client.popen.stdin
    client.popen.stdin.close()
    assert client.wait() == 0, client.errors
    assert "The conversation is full" in client.output
    assert "Tell me a joke about a cat." in answers(client)[-1]
    assert len(model.requests) == 2


def test_a_message_given_with_chat_is_said_first(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    client = joker.start_client("--chat", "Tell me a joke about a cat.")
    type_lines(client, "What did I ask first?", "quit")
    assert client.wait() == 0, client.errors
    assert "Tell me a joke about a cat." in answers(client)[-1]
    assert len(model.requests) == 2, "quit ends the chat, and is not said to Joker"


def test_a_key_without_a_message_opens_the_chat(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    key = key_of(joker.run_client("Tell me a joke about a cat."))
    client = joker.start_client("--session", key)
    type_lines(client, "What did I ask first?", "exit")
    assert client.wait() == 0, client.errors
    assert "Tell me a joke about a cat." in answers(client)[-1]
    assert len(model.requests) == 2, "the demonstration is not played"


def test_the_end_of_input_ends_a_chat(joker: Sample) -> None:
    joker.start_worker()
    client = joker.run_client("--chat")
    assert client.wait() == 0
    assert client.errors == ""


def test_a_line_can_be_edited(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    terminal = Terminal(joker, "--chat")
    terminal.wait_for("You:   ")
    terminal.type("My name is Ad.\x1b[D\x1b[Ca\x1b[D\x1b[D\x08\x1b[Cda\x1b[C\x7f\n")  # left, right, backspace
    terminal.wait_for("Joker: ")
    terminal.wait_for("You:   ", 2)
    terminal.type("\x1b[A\n")  # up: the line before
    terminal.wait_for("Joker: ", 2)
    terminal.wait_for("You:   ", 3)
    terminal.type("\x04")
    assert terminal.wait() == 0
    said = texts(model.requests[1])
    assert "\x1b" not in said[0]
    assert said[2] == said[0]


def test_ctrl_c_at_the_prompt_says_how_to_come_back(joker: Sample) -> None:
    joker.start_worker()
    terminal = Terminal(joker, "--chat")
    terminal.wait_for("You:   ")
    terminal.type("half a li\x03")
    assert terminal.wait() == 130
    lines = terminal.output.splitlines()
    key = lines[0].removeprefix("Conversation ")
    assert lines[-2:] == ["To continue:", f'  python client.py --session {key} "What did I ask first?"']
    assert "Traceback" not in terminal.output


def test_ctrl_c_during_an_answer_says_how_to_come_back(joker: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    joker.start_worker()
    terminal = Terminal(joker, "Hello")
    eventually(lambda: model.requests, "the model is asked")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert terminal.output.splitlines()[-2] == "To continue:"
    assert "Traceback" not in terminal.output


# What survives ----------------------------------------------------------------------------------------------------


def test_a_question_asked_while_no_worker_runs_is_answered_later(joker: Sample) -> None:
    client = joker.start_client("Tell me a joke about a cat.")
    client.wait_for("You: ")
    joker.start_worker()
    assert client.wait() == 0
    assert answers(client)


@pytest.mark.long
def test_a_stopping_worker_returns_its_work_immediately_and_ends_in_bounded_time(
    joker: Sample, model: ScriptedModel
) -> None:
    model.held = threading.Event()
    worker = joker.start_worker()
    client = joker.start_client("Hello")
    eventually(lambda: model.requests, "the model is asked")
    joker.start_worker()
    worker.signal(signal.SIGTERM)
    eventually(lambda: len(model.requests) == 2, "the other worker asks")
    assert worker.popen.poll() is None, "the first still has time to end"
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
def test_an_idle_worker_stops_at_a_signal(number: int, joker: Sample) -> None:
    worker = joker.start_worker()
    worker.signal(number)
    assert worker.wait(10) == 0
    assert worker.errors == ""


def test_a_forgotten_worker_with_other_agents_does_no_harm(joker: Sample, start: Start, tmp_path: Path) -> None:
    folder = copy_of(joker.folder, tmp_path)
    source = (folder / "worker.py").read_text().replace('"Joker"', '"Stranger"')
    (folder / "worker.py").write_text(source)
    stranger = start(sys.executable, "worker.py", cwd=folder, env=joker.environment())
    stranger.wait_for("Worker ready")
    client = joker.start_client("Hello")
    client.wait_for("You: ")
    joker.start_worker()
    assert client.wait() == 0
    assert answers(client)


def test_many_model_calls_run_in_parallel(
    joker: Sample, model: ScriptedModel, modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in joker.settings.items():
        monkeypatch.setenv(name, value)
    client = modules("01", "hosting.scheduler").scheduler_client()
    agents = modules("01", "hosting.agent_client").AgentClient(client)
    model.held = threading.Event()
    joker.start_worker()
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(agents.get_agent("Joker").run, f"Joke number {number}") for number in range(30)]
        eventually(lambda: len(model.requests) == 30, "30 calls in parallel")
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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([""], "message"),
        (["  "], "message"),
        (["--session", "", "Hello"], "--session"),
        (["--session", "a@b", "Hello"], "--session"),
        (["--timeout", "-3", "Hello"], "--timeout"),
        (["--timeout", "0", "Hello"], "--timeout"),
        (["--timeout", "nan", "Hello"], "--timeout"),
        (["--timeout", "soon", "Hello"], "--timeout"),
        (["Hello", "again"], "again"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], named: str, joker: Sample) -> None:
    client = joker.run_client(*arguments, ENDPOINT="http://127.0.0.1:9")
    assert client.wait() == 2
    assert client.output == ""
    assert client.errors.startswith("usage: ")
    assert re.match(f"client.py: error: .*{named}", client.errors.splitlines()[-1])


def test_the_command_line_is_checked_before_anything_starts(joker: Sample) -> None:
    client = joker.run_client("--timeout", "nan", program="sample.py", AZURE_OPENAI_ENDPOINT="")
    assert client.wait() == 2
    assert client.output == ""
    assert "sample.py: error: argument --timeout" in client.errors


def test_help_needs_neither_model_nor_scheduler(joker: Sample) -> None:
    client = joker.run_client("--help", program="sample.py", ENDPOINT="http://127.0.0.1:9", AZURE_OPENAI_ENDPOINT="")
    assert client.wait() == 0
    assert "--chat" in client.output
    assert client.errors == ""


def test_a_client_that_fails_next_to_its_worker_says_why(joker: Sample, model: ScriptedModel) -> None:
    model.fail(400, "too hot")
    client = joker.run_client("Hello", program="sample.py")
    assert client.wait() == 1
    assert "too hot" in client.errors.splitlines()[-1]
    assert "Traceback" not in client.errors


def test_a_reader_of_the_output_who_leaves(joker: Sample, start: Start) -> None:
    joker.start_worker()
    pipeline = f"set -o pipefail; {sys.executable} client.py | head -1"
    client = start("bash", "-c", pipeline, cwd=joker.folder, env=joker.environment())
    assert client.wait() == 141
    assert client.output == f"Conversation {key_of(client)}\n"
    assert all("waiting for Joker" in line for line in client.err)


def test_half_a_character_poisons_no_conversation(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    client = joker.run_client("My name is Ada, from caf\udce9.")  # the byte e9 alone, as $'caf\xe9' passes it
    assert client.wait() == 0, client.errors
    assert stored_turns(joker, key_of(client))[0] == ("request", "My name is Ada, from caf\ufffd.")
    model.say("half of one: \ud83d", times=1)
    assert answers(joker.run_client("--session", key_of(client), "Hello")) == ["half of one: \ufffd"]
    assert stored_turns(joker, key_of(client))[-1] == ("response", "half of one: \ufffd")
    again = joker.run_client("--session", key_of(client), "What is my name?")
    assert again.wait() == 0, again.errors
    assert "Ada" in answers(again)[0]


def test_what_a_model_writes_does_not_steer_the_terminal(joker: Sample, model: ScriptedModel) -> None:
    model.say("\x1b]0;title\x07A \x1b[31mred\x9b2J \u202ejoke\r\x08.\tYes\nand no", times=1)
    joker.start_worker()
    client = joker.run_client("Hello")
    assert client.wait() == 0
    assert answers(client) == ["]0;titleA [31mred2J joke.\tYes\nand no"]
    model.fail(400, "\x1b[31mno")
    client = joker.run_client("Hello \x1b[31myou")
    assert "\x1b" not in client.output + client.errors


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


def test_an_unreachable_model(joker: Sample) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        joker.start_worker(AZURE_OPENAI_ENDPOINT=endpoint)
        assert_one_line(joker.run_client("Hello"), 1, "Cannot connect", endpoint)


def test_a_model_that_recovers_is_asked_again(joker: Sample, model: ScriptedModel) -> None:
    model.fail(500, times=1)
    joker.start_worker()
    assert joker.run_client("Hello").wait() == 0


def test_a_conversation_continues_after_a_failed_turn(joker: Sample, model: ScriptedModel) -> None:
    joker.start_worker()
    key = key_of(joker.run_client("My name is Ada."))
    model.fail(400, "no")
    assert joker.run_client("--session", key, "What is my name?").wait() == 1
    model.heal()
    again = joker.run_client("--session", key, "What is my name?")
    assert "Ada" in answers(again)[0]


NO_ANSWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cut off at the length": ("Half of an", {"finish_reason": "length"}),
    "content filter": ("Half of", {"finish_reason": "content_filter"}),
    "The model's answer is empty": (" \n", {}),
    "The model refuses: I will not": ("", {"said_with": {"content": None, "refusal": "I will not."}}),
    "a tool that it was not offered: rm": (
        "",
        {
            "finish_reason": "tool_calls",
            "said_with": {
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "rm", "arguments": "{}"}}],
            },
        },
    ),
}


@pytest.mark.parametrize("problem", NO_ANSWERS)
def test_what_is_no_answer_is_an_error_and_the_conversation_continues(
    problem: str, joker: Sample, model: ScriptedModel
) -> None:
    joker.start_worker()
    key = key_of(joker.run_client("My name is Ada."))
    text, kind = NO_ANSWERS[problem]
    model.say(text, **kind)
    assert_one_line(joker.run_client("--session", key, "What is my name?"), 1, problem)
    model.heal()
    again = joker.run_client("--session", key, "What is my name?")
    assert again.wait() == 0, again.errors
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


def copy_of(folder: Path, target: Path) -> Path:
    """The sample's folder alone, without the option that a reader may delete."""
    ignored = shutil.ignore_patterns("__pycache__", ".env", "long_conversation.py")
    return Path(shutil.copytree(folder, target / "copy", ignore=ignored))


def test_the_folder_runs_alone(joker: Sample, start: Start, tmp_path: Path) -> None:
    """Copied out, with a .env in it, and started from elsewhere."""
    folder = copy_of(joker.folder, tmp_path)
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in joker.settings.items()))
    environment = {name: value for name, value in joker.environment().items() if name not in joker.settings}
    worker = start(sys.executable, "worker.py", cwd=folder, env=environment)
    worker.wait_for("Worker ready")
    client = start(sys.executable, folder / "client.py", "Hello", cwd=ROOT, env=environment)
    assert client.wait() == 0, client.errors
    assert answers(client)
    assert f"python {folder}/client.py --session {key_of(client)}" in client.output


# How a client looks at a conversation ------------------------------------------------------------------------------


class OneConversation:
    """A client of a scheduler that holds one conversation, with a time stamp that the test decides."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.looks: list[bool] = []  # at each, whether the state was fetched
        self.modified = datetime(2026, 1, 1, tzinfo=timezone.utc)
        self.turns: list[dict[str, Any]] = []

    @property
    def state(self) -> str:
        return json.dumps({"schemaVersion": "1.1.0", "data": {"conversationHistory": self.turns}})

    def get_entity(self, _: Any, include_state: bool = True) -> Any:
        self.looks.append(include_state)
        state = self.state
        return SimpleNamespace(last_modified=self.modified, get_state=lambda: state if include_state else None)

    def signal_entity(self, _: Any, operation: str, request: dict[str, Any]) -> None:
        assert operation == "run"
        self.asked.append(request)

    def answer(self, question: str, text: str) -> None:
        """Store a turn."""
        asked = next(request for request in self.asked if request["message"] == question)
        common = {"correlationId": asked["correlationId"], "createdAt": self.modified.isoformat()}
        for kind, role, said in (("request", "user", question), ("response", "assistant", text)):
            contents = [{"$type": "text", "text": said}]
            self.turns.append({"$type": kind, **common, "messages": [{"role": role, "contents": contents}]})


def test_two_answers_of_the_same_millisecond_are_both_seen(modules: Callable[[str, str], ModuleType]) -> None:
    scheduler = OneConversation()
    joker = modules("01", "hosting.agent_client").AgentClient(scheduler, timeout=20).get_agent("Joker")
    session = joker.create_session()
    with ThreadPoolExecutor() as pool:
        first, second = (pool.submit(joker.run, question, session=session) for question in ("first", "second"))
        eventually(lambda: len(scheduler.asked) == 2, "both questions are asked")
        scheduler.answer("first", "one " * 5_000)  # long enough to be looked at by its time stamp
        assert first.result().text.startswith("one")
        eventually(lambda: not scheduler.looks[-1], "the second sees nothing new")
        scheduler.answer("second", "two")
        assert second.result().text == "two"


def test_a_long_conversation_is_fetched_when_it_has_changed_and_every_two_seconds(
    modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    module = modules("01", "hosting.conversation")
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    scheduler, session = OneConversation(), module.session_of("Joker", "key")
    conversations = module.StoredConversations(scheduler)
    scheduler.signal_entity(None, "run", {"message": "Hello", "correlationId": "1"})

    def look() -> list[bool]:
        scheduler.looks.clear()
        assert conversations.latest(session).state == scheduler.state
        return list(scheduler.looks)

    assert look() == look() == [True], "a short one is fetched at every look"
    scheduler.answer("Hello", "one " * 5_000)
    assert look() == [True]
    assert look() == [False], "a long one is not, while its time stamp is the same"
    scheduler.modified += timedelta(milliseconds=1)
    assert look() == [False, True]
    clock.now += 1.9
    assert look() == [False]
    clock.now += 0.1
    assert look() == [True], "the time stamp may be too coarse to tell"


def test_an_answer_that_another_thread_has_fetched_is_seen(modules: Callable[[str, str], ModuleType]) -> None:
    module = modules("01", "hosting.conversation")
    scheduler, session = OneConversation(), module.session_of("Joker", "key")
    conversations = module.StoredConversations(scheduler)
    scheduler.signal_entity(None, "run", {"message": "Hello", "correlationId": "1"})
    scheduler.answer("Hello", "one " * 5_000)
    seen_by_two = [conversations.latest(session), conversations.latest(session)]
    assert scheduler.looks == [True, False]
    assert all(conversation.answer("1") for conversation in seen_by_two)
