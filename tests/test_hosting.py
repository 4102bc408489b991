"""hosting/ as its users see it: a program's edges, its terminal, its logs, what is sent, and a client's waiting."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import Process, Sample, Start, eventually
from orchestrations import assert_fails, complaints, instance_of, scheduler_client, state_of
from pydantic import BaseModel, Field, RootModel
from scripted_model import ScriptedModel

Modules = Callable[[str, str], ModuleType]

CHAIN = "single_agent_chaining_orchestration"


@pytest.fixture
def chain(sample: Callable[[str], Sample]) -> Sample:
    return sample("04")


@pytest.fixture
def copied(chain: Sample, tmp_path: Path) -> Sample:
    """Sample 04 in a folder that a test may change."""
    chain.folder = shutil.copytree(
        chain.folder, tmp_path / "above" / "sample", ignore=shutil.ignore_patterns("__pycache__")
    )
    return chain


def lines(process: Process) -> list[str]:
    """What it says on stderr."""
    return process.errors.splitlines()


# How a program ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["hosting", "azure.core", "grpc", "durabletask", "pydantic"])
@pytest.mark.parametrize("program", ["worker.py", "client.py", "sample.py"])
def test_ctrl_c_during_the_imports_shows_no_traceback(program: str, module: str, chain: Sample, start: Start) -> None:
    process = start(sys.executable, "-X", "importtime", program, cwd=chain.folder, env=chain.environment())
    eventually(lambda: re.search(rf"\| +{module}\n", process.errors), f"{module} is imported")
    process.signal(signal.SIGINT)
    assert process.wait() in (130, -signal.SIGINT)
    assert "Traceback" not in process.errors
    assert not re.search(r"\| +runpy\n", process.errors), "the signal came while it imported"


def test_help_needs_neither_model_nor_scheduler(chain: Sample) -> None:
    chain.settings = {"ENDPOINT": "http://127.0.0.1:9"}
    for program in ("sample.py", "client.py"):
        process = chain.run_client("--help", program=program)
        assert process.wait() == 0
        assert "--no-wait" in process.output
    assert chain.run_client("--timeout", "-3", program="sample.py").wait() == 2


@pytest.mark.parametrize("value", ["-3", "nan", "0", "inf", "soon"])
def test_a_timeout_is_a_positive_number(value: str, chain: Sample) -> None:
    assert_fails(chain.run_client("--timeout", value), 2, f"'{value}' is not a positive number of seconds")


@pytest.mark.long
def test_a_client_that_fails_next_to_a_worker_that_does_not_stop(chain: Sample, model: ScriptedModel) -> None:
    """The worker of sample.py waits for a model that never answers."""
    model.held = threading.Event()
    both = chain.start_client("--timeout", "1", program="sample.py")
    began = time.monotonic()
    assert_fails(both, 1, "No result within 1 s", "--instance")
    assert 10 < time.monotonic() - began < 25, "the worker has its time to finish, and no more"


def test_a_reader_of_the_output_that_leaves(chain: Sample) -> None:
    chain.start_worker()
    shell = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} client.py | head -n 1"],
        cwd=chain.folder,
        env=chain.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shell.returncode == 141
    assert shell.stdout.startswith("Orchestration: ")
    assert shell.stderr == ""


def test_what_a_program_of_your_own_printed_is_there_when_it_fails(copied: Sample) -> None:
    """A worker's threads keep the process alive, so it is ended the hard way: after what was printed."""
    (copied.folder / "mine.py").write_text(
        "import threading\n"
        "from hosting.program import AgentError, run\n"
        "def main():\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    print('before')\n"
        "    raise AgentError('it failed')\n"
        "run(main)\n"
    )
    mine = copied.run_client(program="mine.py", PYTHONUNBUFFERED="")
    assert_fails(mine, 1, "it failed")
    assert mine.output == "before\n"


# The scheduler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["worker.py", "client.py", "sample.py"])
def test_a_scheduler_that_is_not_there(program: str, chain: Sample) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else can take the port
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        process = chain.run_client(program=program, ENDPOINT=endpoint)
        assert_fails(process, 2, f"The scheduler at {endpoint} does not answer", "run.py up")
        assert len(lines(process)) == 1


def test_a_scheduler_that_is_silent(chain: Sample) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        client = chain.run_client(ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert 5 <= time.monotonic() - began < 10
        assert_fails(client, 2, "does not answer")
        assert len(lines(client)) == 1


def test_https_to_a_plain_scheduler(chain: Sample) -> None:
    secure = chain.settings["ENDPOINT"].replace("http:", "https:")
    environment = {"AZURE_CLIENT_ID": "", "AZURE_TENANT_ID": "", "ENDPOINT": secure}
    client = chain.run_client(**environment)
    assert_fails(client, 2)
    assert len(lines(client)) == 1, client.errors


@pytest.mark.parametrize("number", ["01", "04"])
def test_a_password_in_an_address_is_not_printed(number: str, sample: Callable[[str], Sample]) -> None:
    one = sample(number)
    for program in ("worker.py", "client.py"):
        process = one.run_client(program=program, ENDPOINT="http://user:secret-word@127.0.0.1:9")
        assert_fails(process, 2, "http://127.0.0.1:9")
        assert "secret-word" not in process.errors + process.output
    wrong = one.run_client(ENDPOINT="ftp://user:secret-word@host")
    assert_fails(wrong, 2, "ENDPOINT=ftp://host must start with http://")
    assert "secret-word" not in wrong.errors


# Settings ---------------------------------------------------------------------------------------------------------


def model_said(worker: Process) -> str:
    """The model that a worker says it uses."""
    return worker.wait_for(r"Model: (.*)\n")[1]


@pytest.fixture
def files_only(copied: Sample, start: Start, tmp_path: Path) -> Callable[..., str]:
    """Starts a worker whose settings are in `.env` files, by folder, and in the environment; returns its model."""
    kept = {name: value for name, value in os.environ.items() if not re.search("OPENAI|ENDPOINT|TASKHUB", name)}

    def model_of(files: dict[str, dict[str, str]], **environment: str) -> str:
        for folder, settings in files.items():
            text = "".join(f"{name}={value}\n" for name, value in settings.items())
            (tmp_path / folder / ".env").write_text(text)
        env = {**kept, "PYTHONUNBUFFERED": "1", "ENDPOINT": copied.settings["ENDPOINT"], **environment}
        worker = start(sys.executable, "worker.py", cwd=copied.folder, env=env)
        said = model_said(worker)
        worker.stop()
        return said

    return model_of


AZURE = {"AZURE_OPENAI_ENDPOINT": "http://azure.test", "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "file-azure"}
AZURE |= {"AZURE_OPENAI_API_KEY": "x"}
OPENAI = {"OPENAI_API_KEY": "x", "OPENAI_MODEL": "file-openai", "OPENAI_BASE_URL": "http://openai.test"}


def test_env_files_of_the_programs_folder_and_the_one_above_are_read(files_only: Callable[..., str]) -> None:
    above = {**OPENAI, "OPENAI_MODEL": "above"}
    assert files_only({"above": above}) == "above at http://openai.test"
    assert files_only({"above": above, "above/sample": {"OPENAI_MODEL": "beside"}}) == "beside at http://openai.test"


def test_an_env_file_further_above_is_not_read(files_only: Callable[..., str]) -> None:
    assert files_only({".": AZURE, "above": OPENAI}) == "file-openai at http://openai.test"


def test_the_environment_wins_as_a_whole(files_only: Callable[..., str]) -> None:
    """Also when it names the other kind of model than the file."""
    environment = {"OPENAI_API_KEY": "x", "OPENAI_MODEL": "mine"}
    assert files_only({"above": AZURE}, **environment) == "mine at OpenAI"
    assert files_only({"above": OPENAI}, **AZURE) == "file-azure at http://azure.test"
    assert files_only({"above": OPENAI}, OPENAI_MODEL="mine") == "mine at http://openai.test"


def test_a_password_in_the_models_address_is_not_printed(files_only: Callable[..., str]) -> None:
    said = files_only({"above": {**OPENAI, "OPENAI_BASE_URL": "http://user:secret-word@openai.test/v1"}})
    assert said == "file-openai at http://openai.test/v1"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon"])
def test_a_wrong_time_for_the_model(value: str, chain: Sample) -> None:
    worker = chain.run_client(program="worker.py", MODEL_TIMEOUT_SECONDS=value)
    assert_fails(worker, 2, "MODEL_TIMEOUT_SECONDS", f"'{value}'")


# The terminal -----------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(modules: Modules) -> ModuleType:
    return modules("04", "hosting.terminal")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("tab\t and\nnew line: é 漢 😀", "tab\t and\nnew line: é 漢 😀"),
        ("\x1b[31mred\x1b]0;title\x07", "[31mred]0;title"),
        ("\x9b31m\r\x00\x7f", "31m"),
        ("safe\u202eexe.\u2066txt", "safeexe.txt"),
        ("half \ud83d of it", "half \ufffd of it"),
        ("two halves \ud83d\ude00", "two halves 😀"),
        (None, "None"),
    ],
)
def test_what_would_steer_a_terminal_is_not_printed(text: object, seen: str, terminal: ModuleType) -> None:
    assert terminal.printable(text) == seen


def test_control_characters_of_a_model_do_not_reach_the_terminal(chain: Sample, model: ScriptedModel) -> None:
    model.say("A \x1b[31mred\x1b[0m sea.")
    chain.start_worker()
    client = chain.run_client()
    assert client.wait() == 0
    assert "Improved:      A [31mred[0m sea.\n" in client.output


@pytest.mark.parametrize(
    ("program", "started_as", "run_as", "hint"),
    [
        ("client.py", "client.py", "", "python client.py"),
        ("worker.py", "client.py", "", "python worker.py"),
        ("worker.py", "04_chain/client.py", "", f"python {Path('04_chain/worker.py')}"),
        ("client.py", "sample.py", "", "python sample.py"),
        ("client.py", "client.py", "python3 run.py 04", "python3 run.py 04"),
        ("worker.py", "client.py", "python3 run.py 04", "python3 run.py 04 worker.py"),
    ],
)
def test_a_hint_works_where_the_reader_stands(
    program: str, started_as: str, run_as: str, hint: str, terminal: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_AS", run_as)
    monkeypatch.setattr(sys, "argv", [started_as])
    assert terminal.command(program) == hint


def test_half_a_character_on_the_command_line(chain: Sample, model: ScriptedModel) -> None:
    chain.start_worker()
    client = chain.run_client(os.fsdecode(b"caf\xe9"))
    assert client.wait() == 0, client.errors
    assert "about caf\ufffd." in str(model.requests[0]["messages"])


# Logs -------------------------------------------------------------------------------------------------------------

OWN_ERRORS = """
import worker
from hosting.chat_client import chat_client
from hosting.program import run
from hosting.scheduler import scheduler_worker, serve

from agent_framework import Agent
from agent_framework_durabletask import AgentResponseCallbackProtocol, DurableAIAgentWorker


def broken_tool(city: str) -> str:
    '''The weather.'''
    raise KeyError("my own mistake in a tool")


class BrokenCallback:
    async def on_streaming_response_update(self, update, context): ...

    async def on_agent_response(self, response, context):
        raise KeyError("my own mistake in a callback")


def main():
    one = scheduler_worker()
    agent = Agent(client=chat_client(), name="WriterAgent", tools=[broken_tool])
    DurableAIAgentWorker(one, callback=BrokenCallback()).add_agent(agent)
    one.add_orchestrator(worker.single_agent_chaining_orchestration)
    serve(one)


run(main)
"""


def test_an_error_in_the_readers_own_code_is_shown_with_its_traceback(copied: Sample, model: ScriptedModel) -> None:
    calls = [{"id": "call-1", "type": "function", "function": {"name": "broken_tool", "arguments": '{"city": "Rome"}'}}]
    model.say("", times=1, said_with={"tool_calls": calls}, finish_reason="tool_calls")
    (copied.folder / "mine.py").write_text(OWN_ERRORS)
    worker = copied.start_client(program="mine.py")
    worker.wait_for("Worker ready")
    assert copied.run_client().wait() == 0
    worker.stop()
    for mistake in ("my own mistake in a tool", "my own mistake in a callback"):
        assert f"KeyError: '{mistake}'" in worker.errors
    assert worker.errors.count("Traceback") >= 2


def test_an_error_of_the_model_is_one_line(chain: Sample, model: ScriptedModel) -> None:
    model.fail(500, "out of order", times=1, headers={"x-should-retry": "false"})
    worker = chain.start_worker()
    assert chain.run_client().wait() == 0
    worker.stop()
    (line,) = lines(worker)
    assert line.startswith("WARNING sample: The model failed (500): out of order")


# What is sent -----------------------------------------------------------------------------------------------------


class Word(BaseModel):
    text: str = Field(min_length=1)
    weight: int = 1


class Title(RootModel[str]):
    pass


@pytest.fixture
def converter(modules: Modules) -> Any:
    return modules("04", "hosting.payloads").ModelConverter()


@pytest.mark.parametrize(
    ("value", "declared"),
    [
        (Word(text="a"), Word),
        (Title("a"), Title),
        (Word(text="a"), Word | None),
        (None, Word | None),
        ([Word(text="a"), Word(text="b", weight=2)], list[Word]),
        ({"one": Word(text="a")}, dict[str, Word]),
    ],
)
def test_a_model_arrives_as_it_was_sent(value: Any, declared: Any, converter: Any) -> None:
    assert converter.can_reconstruct(declared)
    sent = converter.serialize(value)
    assert converter.deserialize(sent, declared) == value


def test_what_declares_no_model_arrives_raw(converter: Any) -> None:
    for declared in (None, str, int, dict, list[int], Any):
        assert not converter.can_reconstruct(declared)
    raw = {"text": "", "more": [1, None, "\u00e9"]}
    assert converter.deserialize(converter.serialize(raw), None) == raw
    assert converter.deserialize(None, None) is None


@pytest.mark.parametrize(
    ("sent", "declared", "words"),
    [
        ({"text": ""}, Word, "The input is not a valid Word. text: String should have at least 1 character"),
        ({"text": "a", "weight": "much"}, Word, "weight: Input should be a valid integer"),
        ([{"text": "a"}, {}], list[Word], "1.text: Field required"),
        (None, Word, "The input is not a valid Word. Input should be"),
        (7, Title | None, "The input is not a valid Title. Input should be a valid string"),
    ],
)
def test_an_invalid_input_names_the_field_in_one_line(sent: Any, declared: Any, words: str, converter: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        converter.deserialize(converter.serialize(sent), declared)
    assert "\n" not in str(error.value)


def test_an_invalid_input_fails_the_orchestration(chain: Sample) -> None:
    worker = chain.start_worker()
    with scheduler_client(chain) as client:
        instance = client.schedule_new_orchestration(CHAIN, input={"topic": "the sea"})
        state = client.wait_for_orchestration_completion(instance, timeout=30)
    assert state
    assert state.failure_details
    assert "The input is not a valid" in state.failure_details.message
    assert "\n" not in state.failure_details.message
    assert_fails(chain.run_client("--instance", instance), 1, "not a valid Topic. Input should be a valid string")
    worker.stop()
    assert "Traceback" not in worker.errors


@pytest.mark.parametrize(
    "text",
    ["2026-11-24T12:30:00+00:00", "2026-11-24T12:30:00.123456Z", "2026-11-24T12:30:00.1", "24 Nov 2026 12:30", "never"],
)
def test_dates_of_a_stored_conversation_are_read_as_the_package_reads_them(text: str, modules: Modules) -> None:
    runtime = modules("04", "hosting.agent_runtime")
    inner = runtime._durable_agent_state
    any_form = inner.date_parser
    try:
        runtime.read_dates_quickly()
        stored = {"$type": "request", "correlationId": "a", "createdAt": text, "messages": []}
        state = {"schemaVersion": "1.1.0", "data": {"conversationHistory": [stored]}}
        read = inner.DurableAgentState.from_dict(state).data.conversation_history[0].created_at
    finally:
        inner.date_parser = any_form
    if text == "never":
        assert read.year >= 2026  # the package takes the time of now
    else:
        assert read == any_form.parse(text)


# A client's waiting -----------------------------------------------------------------------------------------------


def test_started_without_waiting_and_come_back_to(chain: Sample, model: ScriptedModel) -> None:
    started = chain.run_client("--no-wait", "teamwork")
    assert started.wait() == 0
    instance = started.output.strip()
    assert started.output == f"{instance}\n", "the id alone, for a script"
    assert f"python client.py --instance {instance}" in started.errors

    chain.start_worker()
    for _ in range(2):  # while it runs, and when it has ended
        back = chain.run_client("--instance", instance)
        assert back.wait() == 0
        assert "teamwork" in back.output
    assert len(model.requests) == 2


def test_an_instance_that_is_not_known(chain: Sample) -> None:
    assert_fails(chain.run_client("--instance", "nobody"), 2, "nobody", chain.settings["TASKHUB"])


def test_an_instance_of_another_orchestration(chain: Sample) -> None:
    with scheduler_client(chain) as client:
        instance = client.schedule_new_orchestration("something_else")
    assert_fails(chain.run_client("--instance", instance), 2, instance, CHAIN)


def test_no_result_in_time(chain: Sample, model: ScriptedModel) -> None:
    client = chain.run_client("--timeout", "0.5")
    instance = instance_of(client)
    come_back = f"python client.py --instance {instance}"
    assert_fails(client, 1, "No result within 0.5 s", "python worker.py", "It begins when a worker runs", come_back)

    model.held = threading.Event()
    chain.start_worker()
    eventually(lambda: model.requests, "the model is asked")
    client = chain.run_client("--instance", instance, "--timeout", "0.1")
    assert_fails(client, 1, "asking WriterAgent", "The work continues without this client", come_back)
    model.held.set()
    assert chain.run_client("--instance", instance).wait() == 0


def test_ctrl_c_does_not_end_the_work(chain: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    chain.start_worker()
    client = chain.start_client()
    instance = instance_of(client)
    eventually(lambda: model.requests, "the model is asked")
    client.signal(signal.SIGINT)
    assert_fails(client, 130, "continues", f"python client.py --instance {instance}")
    model.held.set()
    assert chain.run_client("--instance", instance).wait() == 0


def test_a_result_that_is_there_comes_without_a_progress_line(chain: Sample) -> None:
    chain.start_worker()
    instance = instance_of(chain.run_client())
    client = chain.run_client("--instance", instance)
    assert client.wait() == 0
    assert client.errors == ""


def test_a_long_wait_shows_its_progress(chain: Sample, model: ScriptedModel) -> None:
    client = chain.start_client()
    eventually(lambda: "not begun" in client.errors, "it says that no worker is there")
    model.held = threading.Event()
    chain.start_worker()
    eventually(lambda: "asking WriterAgent" in client.errors, "it says that it runs")
    model.held.set()
    assert client.wait() == 0
    assert client.errors.count("\n") < 6


def test_a_suspended_orchestration_is_called_so(chain: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    chain.start_worker()
    instance = chain.run_client("--no-wait").output.strip()
    eventually(lambda: model.requests, "the model is asked")
    with scheduler_client(chain) as scheduler:
        scheduler.suspend_orchestration(instance)
        eventually(lambda: state_of(chain, instance).runtime_status.name == "SUSPENDED", "suspended")
        assert_fails(chain.run_client("--instance", instance, "--timeout", "0.1"), 1, "suspended")
        scheduler.resume_orchestration(instance)
    model.held.set()
    assert chain.run_client("--instance", instance).wait() == 0


def test_a_terminated_orchestration_is_called_so(chain: Sample) -> None:
    client = chain.start_client()
    instance = instance_of(client)
    with scheduler_client(chain) as scheduler:
        scheduler.terminate_orchestration(instance, output="enough")
    chain.start_worker()
    assert_fails(client, 1, "terminated", "enough", instance)


def test_a_purged_orchestration_is_called_so(chain: Sample, model: ScriptedModel) -> None:
    client = chain.start_client()
    instance = instance_of(client)
    with scheduler_client(chain) as scheduler:
        scheduler.terminate_orchestration(instance)
        eventually(lambda: scheduler.purge_orchestration(instance).deleted_instance_count, "purged")
    assert client.wait() == 1
    assert instance in complaints(client)


@pytest.fixture
def half_way(chain: Sample, model: ScriptedModel) -> str:
    """An orchestration that shows its draft, while the model is held at the second call."""
    chain.start_worker()
    gate = model.held = threading.Event()
    instance = chain.run_client("--no-wait").output.strip()
    eventually(lambda: model.requests, "the first call")
    model.held = threading.Event()
    gate.set()
    return instance


def test_a_change_of_the_custom_status_is_seen_while_waiting(
    half_way: str, chain: Sample, model: ScriptedModel, modules: Modules
) -> None:
    status, seen = modules("04", "hosting.status"), []
    with scheduler_client(chain) as client:
        for state in modules("04", "hosting.waiting").watch(client, half_way, 60, every=0.05):
            seen.append((status.headline(state), status.shown(state)))
            if seen[-1][1]:
                assert model.held
                model.held.set()
    assert ("asking WriterAgent", "Learning something new every day makes life better.") in seen
    assert seen[-1] == ("WriterAgent has answered", "Learning something new every day makes life better.")


def test_what_a_person_takes_to_answer_is_not_counted(
    half_way: str,
    chain: Sample,
    model: ScriptedModel,
    modules: Modules,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    thought = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + thought, sleep=time.sleep)
    waiting, status = modules("04", "hosting.waiting"), modules("04", "hosting.status")
    monkeypatch.setattr(waiting, "time", clock)
    with scheduler_client(chain) as client:
        for state in waiting.watch(client, half_way, 60):
            if status.shown(state) and not thought:
                thought = 1000.0
                assert model.held
                model.held.set()
    assert thought
    assert "1000 s" not in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["200", "40"])
def test_on_a_terminal_the_progress_is_one_line_if_it_fits(
    columns: str, chain: Sample, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    waiting, terminal, program = (modules("04", f"hosting.{name}") for name in ("waiting", "terminal", "program"))
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "QUIET_SECONDS", 0.0)
    instance = chain.run_client("--no-wait").output.strip()
    with scheduler_client(chain) as client, pytest.raises(program.AgentError):
        for _ in waiting.watch(client, instance, 0.5, every=0.05):
            pass
    if columns == "200":
        assert "\n" not in screen.getvalue()
        assert screen.getvalue().count("not begun") > 1
        assert screen.getvalue().endswith("\r"), "and leaves nothing behind"
    else:  # what has wrapped could not be overwritten: a line now and then
        assert "\r" not in screen.getvalue()
        assert 0 < screen.getvalue().count("\n") < 5
