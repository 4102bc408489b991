"""Sample 03 end to end: whatever is killed, cut or lost, a reader ends with the text that was stored, once."""

import asyncio
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from queue import Queue
from types import ModuleType
from typing import Any

import pytest
import redis
from agent_framework import AgentResponse, AgentResponseUpdate, Content, Message
from agent_framework_durabletask import AgentCallbackContext, AgentSessionId
from conftest import Process, Sample, Start, eventually
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.entities import EntityInstanceId
from scripted_model import ScriptedModel

from local_services.redis_server import redis_program

pytestmark = pytest.mark.skipif(not redis_program(), reason="needs a real redis-server")

# A client that keeps what it gets, as a real one would: chunk by chunk, on its standard output.
READER = """
import asyncio, dataclasses, json, sys
from hosting.agent_client import AgentClient
from hosting.conversation import session_of
from hosting.program import run
from hosting.scheduler import scheduler_client
from redis_stream import redis_client, stream_ttl
from redis_stream_response_handler import RedisStreamResponseHandler, StreamChunk

async def read(agents, *arguments):
    stored = lambda key: agents.stored_conversation(session_of("TravelPlanner", key))
    async with RedisStreamResponseHandler(redis_client(), stream_ttl(), stored, patience=30) as handler:
        async for chunk in handler.read_stream(*arguments):
            if chunk != StreamChunk(chunk.entry_id):
                print(json.dumps(dataclasses.asdict(chunk)), flush=True)

run(lambda: asyncio.run(read(AgentClient(scheduler_client()), *sys.argv[1:])))
"""


class RedisServer:
    """A redis-server that can be stopped, and started again on the same port."""

    def __init__(self, start: Start, *options: str) -> None:
        program = redis_program()
        assert program
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"redis://127.0.0.1:{self.port}"
        self._start_program = start
        self._command = [program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", *options]
        self.start()

    def start(self) -> None:
        """Start it, with nothing in it."""
        self.process = self._start_program(*self._command)
        self.process.wait_for("Ready to accept connections")

    def client(self) -> Any:
        """A connection to it. (redis-py types every answer as one of a synchronous and an asynchronous client.)"""
        return redis.Redis(port=self.port, decode_responses=True)


class Planner:
    """Sample 03, and what the scheduler and Redis have of it."""

    def __init__(self, sample: Sample, start: Start) -> None:
        self.sample = sample
        self._start = start

    def ask(self, *arguments: str, **settings: str) -> Process:
        """Start client.py, and wait until it has asked."""
        client = self.sample.start_client(*arguments, **settings)
        client.wait_for("Conversation")
        return client

    def reader(self, *arguments: str) -> Process:
        """A process that reads: session key, cursor, correlation id."""
        environment = self.sample.environment()
        return self._start(sys.executable, "-c", READER, *arguments, cwd=self.sample.folder, env=environment)

    def stored(self, key: str) -> str:
        """The stored conversation, in JSON."""
        with DurableTaskSchedulerClient(
            host_address=self.sample.settings["ENDPOINT"],
            taskhub=self.sample.settings["TASKHUB"],
            token_credential=None,
            secure_channel=False,
        ) as client:
            entity = client.get_entity(EntityInstanceId(AgentSessionId("TravelPlanner", key).entity_name, key))
        return (entity.get_state() if entity else None) or ""

    def answers(self, key: str) -> list[str]:
        """The texts that are stored, answer by answer."""
        state = self.stored(key)
        return [
            "".join(content.get("text", "") for message in turn["messages"] for content in message["contents"])
            for turn in (json.loads(state)["data"]["conversationHistory"] if state else [])
            if turn["$type"] == "response"
        ]

    def answer(self, key: str, number: int = 1) -> str:
        """The text of an answer, once it is stored; the first is number 1."""
        return eventually(lambda: self.answers(key)[number - 1 : number], "the answer is stored")[0]


@pytest.fixture
def server(start: Start) -> RedisServer:
    return RedisServer(start)


@pytest.fixture
def planner(sample: Callable[[str], Sample], start: Start, server: RedisServer, model: ScriptedModel) -> Planner:
    model.token_delay = 0.004  # an answer takes a second or two
    planner = Planner(sample("03"), start)
    planner.sample.settings["REDIS_CONNECTION_STRING"] = server.address
    return planner


def key_of(client: Process) -> str:
    return client.wait_for(r"Conversation (\w+)\n")[1]


def shown(client: Process) -> str:
    """The answer as it stands on the screen; after a restart, what came since."""
    text = re.sub(r"\A(.*\n)?Conversation \w+\n(You: .*\n\n)?", "", client.output)
    text = re.split(r"\n\n(?:To continue:|\[Disconnected|\[Interrupted)", text)[0]
    return text.rpartition("starts again.]\n\n")[2]


def resume_arguments(client: Process) -> list[str]:
    """The arguments of the command that continues reading, as the client printed it."""
    match = re.search(r"To read on:\n  python client\.py (.*)", client.output + client.errors)
    assert match, client.output + client.errors
    return match[1].split()


def chunks(reader: Process) -> list[dict[str, Any]]:
    """What a reader has got so far."""
    return [json.loads(line) for line in reader.out if line.endswith("}\n")]


def text_of(received: list[dict[str, Any]]) -> str:
    """The text that chunks make up."""
    text = ""
    for chunk in received:
        text = chunk["text"] if chunk["restarted"] else text + chunk["text"]
    return text


def pieces(received: list[Any]) -> list[Any]:
    """The chunks that say something: in silence, empty ones come too."""
    return [chunk for chunk in received if chunk.text or chunk.notice or chunk.error or chunk.is_done]


def read_all(handler: Any, *arguments: str) -> list[Any]:
    """What `read_stream` yields, until its end, in this process."""

    async def read() -> list[Any]:
        async with handler:
            return pieces([chunk async for chunk in handler.read_stream(*arguments)])

    return asyncio.run(read())


def has_results(request: dict[str, Any]) -> bool:
    """Whether a request to the model carries the tools' results: the one that is answered with the plan."""
    return any(message["role"] == "tool" for message in request["messages"])


def assert_one_line(process: Process, code: int, *words: str) -> None:
    """The program ended with that code, and one line on stderr that says this."""
    assert process.wait() == code, process.output + process.errors
    assert process.errors.count("\n") == 1, process.errors
    for word in words:
        assert word in process.errors


# A stream, and its readers -----------------------------------------------------------------------------------------


def test_the_answer_is_printed_while_it_is_written(planner: Planner, model: ScriptedModel) -> None:
    model.token_delay = 0.01
    worker = planner.sample.start_worker()
    client = planner.ask()
    client.wait_for("# 3 days in Tokyo")
    assert not planner.answers(key_of(client)), "nothing is stored yet"
    assert client.wait() == 0, client.errors
    assert client.errors == ""
    assert shown(client) == planner.answer(key_of(client))
    assert "[" not in shown(client)
    worker.stop()
    assert worker.errors == ""


def test_the_plan_is_made_with_the_tools(planner: Planner, model: ScriptedModel) -> None:
    planner.sample.start_worker()
    client = planner.ask("Plan a 2-day trip to Lisbon next week.")
    assert client.wait() == 0
    called = {tool["function"]["name"] for tool in model.requests[0]["tools"]}
    assert called == {"get_weather_forecast", "get_local_events", "reserve_table"}
    assert "26 °C" in shown(client)
    assert "Fado evening" in shown(client)


def test_every_cursor_leads_to_the_rest_and_nothing_else(
    planner: Planner, modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    planner.sample.start_worker()
    client = planner.ask()
    assert client.wait() == 0
    key = key_of(client)
    monkeypatch.setenv("REDIS_CONNECTION_STRING", server.address)
    stream, reader = modules("03", "redis_stream"), modules("03", "redis_stream_response_handler")

    def read(*cursor: str) -> list[Any]:
        redis, ttl = stream.redis_client(), stream.stream_ttl()
        handler = reader.RedisStreamResponseHandler(redis, ttl, lambda key: reader.Conversation(planner.stored(key)))
        return read_all(handler, key, *cursor)

    received = read()
    assert "".join(chunk.text for chunk in received) == planner.answer(key)
    assert [chunk.is_done for chunk in received] == [False] * (len(received) - 1) + [True]
    assert len(received) > 100
    for number in range(0, len(received) - 1, 7):
        rest = read(received[number].entry_id)
        assert [chunk.text for chunk in rest] == [chunk.text for chunk in received[number + 1 :]]
        assert not any(chunk.restarted for chunk in rest)


def test_a_reader_killed_at_any_chunk_resumes_after_it(planner: Planner, model: ScriptedModel) -> None:
    model.token_delay = 0.01
    planner.sample.start_worker()
    client = planner.ask()
    key = key_of(client)
    received: list[dict[str, Any]] = []
    for target in (1, 30, 90, 150):
        reader = planner.reader(key, *([received[-1]["entry_id"]] if received else []))
        missing = target - len(received)
        eventually(lambda reader=reader, missing=missing: len(chunks(reader)) >= missing, "some chunks")
        reader.kill()
        received += chunks(reader)
        assert not received[-1]["is_done"]
    last = planner.reader(key, received[-1]["entry_id"])
    assert last.wait() == 0, last.errors
    received += chunks(last)
    assert not any(chunk["restarted"] for chunk in received)
    assert "".join(chunk["text"] for chunk in received) == planner.answer(key)


def test_readers_do_not_disturb_one_another(planner: Planner) -> None:
    planner.sample.start_worker()
    client = planner.ask()
    key = key_of(client)
    others = [planner.reader(key), planner.reader(key)]
    for reader in others:
        assert reader.wait() == 0, reader.errors
    late = planner.reader(key)
    assert late.wait() == 0
    assert client.wait() == 0
    assert {text_of(chunks(reader)) for reader in [*others, late]} == {planner.answer(key)} == {shown(client)}
    assert len(chunks(late)) > 100


def test_ctrl_c_prints_the_command_that_reads_on(planner: Planner, model: ScriptedModel) -> None:
    model.token_delay = 0.01
    planner.sample.start_worker()
    client = planner.ask()
    client.wait_for("Day 1")
    client.signal(signal.SIGINT)
    assert client.wait() == 130
    assert client.errors == ""
    resumed = planner.ask(*resume_arguments(client))
    assert resumed.wait() == 0, resumed.errors
    assert "--cursor" in resume_arguments(client)
    assert shown(client) + shown(resumed) == planner.answer(key_of(client))
    assert "starts again" not in resumed.output


def test_disconnecting_on_purpose(planner: Planner) -> None:
    planner.sample.start_worker()
    client = planner.ask("--disconnect-after", "12")
    assert client.wait() == 0
    assert client.errors == ""
    resumed = planner.ask(*resume_arguments(client))
    assert resumed.wait() == 0
    assert shown(client) + shown(resumed) == planner.answer(key_of(client))


def test_leaving_before_the_first_word_loses_nothing(
    planner: Planner, model: ScriptedModel, server: RedisServer
) -> None:
    """Also not the question: the answer that is read later is not that of the turn before."""
    planner.sample.start_worker()
    first = planner.ask("Plan a weekend in Lisbon.")
    assert first.wait() == 0
    model.held = threading.Event()
    second = planner.ask("--session", key_of(first), "Plan a weekend in Paris.")
    eventually(lambda: model.asked("Paris"), "the model is asked")
    stream = f"agent-stream:{key_of(first)}"
    eventually(lambda: "attempt" not in server.client().xrevrange(stream, count=1)[0][1], "the question is announced")
    second.signal(signal.SIGINT)
    assert second.wait() == 130
    resumed = planner.ask(*resume_arguments(second))
    model.held.set()
    assert resumed.wait() == 0, resumed.errors
    assert shown(resumed).startswith("# 2 days in Paris")
    assert shown(resumed) == planner.answer(key_of(first), 2)


def test_a_second_turn_streams_alone(planner: Planner) -> None:
    planner.sample.start_worker()
    first = planner.ask("Plan a weekend in Lisbon.")
    assert first.wait() == 0
    key = key_of(first)
    second = planner.ask("--session", key, "What if it rains?")
    assert second.wait() == 0
    assert second.errors == ""
    assert shown(second) == planner.answer(key, 2) != shown(first)
    newest = planner.ask("--session", key)
    assert newest.wait() == 0
    assert shown(newest) == shown(second)


def test_where_there_is_no_redis_server_its_stand_in_does(planner: Planner, start: Start) -> None:
    command = "from local_services import redis_server as s; s.redis_program = lambda: None; s.main()"
    stand_in = start(sys.executable, "-c", command, "--port", "0")
    settings = {"REDIS_CONNECTION_STRING": stand_in.wait_for(r"redis ready: (\S+)")[1]}
    worker = planner.sample.start_worker(**settings)
    client = planner.ask("--disconnect-after", "30", **settings)
    assert client.wait() == 0, client.errors
    assert "[Disconnected after 30 chunks.]" in client.output
    resumed = planner.ask(*resume_arguments(client), **settings)
    assert resumed.wait() == 0, resumed.errors
    assert shown(client) + shown(resumed) == planner.answer(key_of(client))
    worker.stop()
    assert client.errors + resumed.errors + worker.errors == ""


def test_worker_and_client_in_one_process(planner: Planner) -> None:
    client = planner.sample.run_client(program="sample.py")
    assert client.wait() == 0, client.errors
    assert client.errors == ""
    assert shown(client) == planner.answer(key_of(client))


# What is killed and cut ---------------------------------------------------------------------------------------------


def test_a_worker_killed_mid_stream_is_replaced_and_the_answer_starts_again(
    planner: Planner, model: ScriptedModel
) -> None:
    model.token_delay = 0.01
    first = planner.sample.start_worker()
    client = planner.ask()
    reader = planner.reader(key_of(client))
    client.wait_for("Day 1")
    first.kill()
    planner.sample.start_worker()
    assert client.wait() == 0, client.errors
    assert client.output.count("[Another worker took over. The answer starts again.]") == 1
    assert shown(client) == planner.answer(key_of(client))
    assert reader.wait() == 0
    assert text_of(chunks(reader)) == planner.answer(key_of(client))
    assert sum(chunk["restarted"] for chunk in chunks(reader)) == 1
    assert len(planner.answers(key_of(client))) == 1


def test_who_resumes_after_the_worker_was_replaced_is_told_too(planner: Planner, model: ScriptedModel) -> None:
    model.token_delay = 0.01
    first = planner.sample.start_worker()
    client = planner.ask("--disconnect-after", "40")
    assert client.wait() == 0
    first.kill()
    planner.sample.start_worker()
    resumed = planner.ask(*resume_arguments(client))
    assert resumed.wait() == 0, resumed.errors
    assert "The answer starts again" in resumed.output
    assert shown(resumed) == planner.answer(key_of(client))


@pytest.mark.parametrize("fault", ["truncate", "break_off"])
def test_a_model_that_breaks_off_is_asked_again(fault: str, planner: Planner, model: ScriptedModel) -> None:
    planner.sample.start_worker()
    getattr(model, fault)(after=60, matches=has_results)
    client = planner.ask()
    assert client.wait() == 0, client.errors
    assert [bool(request.get("stream")) for request in model.requests] == [True, True, False, False]
    assert "starts again" not in client.output, "the model wrote the same again"
    assert shown(client) == planner.answer(key_of(client))
    assert shown(client).startswith("# 3 days")


def test_a_model_that_answers_in_other_words_when_asked_again_is_a_restart(
    planner: Planner, model: ScriptedModel
) -> None:
    planner.sample.start_worker()
    model.break_off(after=60, matches=has_results)
    model.say("Go to Kyoto.", matches=lambda request: not request.get("stream"))
    client = planner.ask()
    assert client.wait() == 0, client.errors
    assert client.output.count("[The stored answer differs. The answer starts again.]") == 1
    assert shown(client) == planner.answer(key_of(client)) == "Go to Kyoto."


def test_an_agents_error_is_an_error_within_seconds(planner: Planner, model: ScriptedModel) -> None:
    planner.sample.start_worker()
    model.fail(400, "no such trips")
    began = time.monotonic()
    client = planner.ask()
    assert_one_line(client, 1, "no such trips")
    assert time.monotonic() - began < 20
    again = planner.ask("--session", key_of(client))
    assert_one_line(again, 1, "no such trips")


def test_an_error_after_half_an_answer(planner: Planner, model: ScriptedModel) -> None:
    planner.sample.start_worker()
    model.break_off(after=60, matches=has_results)
    model.fail(400, "enough", matches=lambda request: not request.get("stream"))
    client = planner.ask()
    assert_one_line(client, 1, "enough")
    assert "# 3 days" in client.output


# Redis unreachable --------------------------------------------------------------------------------------------------


def test_redis_down_from_the_start(planner: Planner, server: RedisServer) -> None:
    server.process.kill()
    worker = planner.sample.start_worker()
    client = planner.ask("Plan a weekend in Lisbon.")
    assert client.wait() == 0, client.errors
    assert "No pieces come for now" in client.errors
    assert client.errors.count("No pieces") == 1
    assert str(server.port) in client.errors
    assert shown(client) == planner.answer(key_of(client))

    server.start()
    eventually(lambda: "Answers are streamed again" in worker.errors, "the worker has found Redis")
    reader = planner.reader(key_of(client), "0-0")
    assert reader.wait() == 0
    assert text_of(chunks(reader)) == shown(client)
    second = planner.ask("--session", key_of(client), "What if it rains?", "--disconnect-after", "3")
    assert second.wait() == 0
    assert "[Disconnected after 3 chunks.]" in second.output, "the next turn streams"
    assert second.errors == ""
    assert "Traceback" not in worker.errors


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_redis_going_down_in_the_middle(how: str, planner: Planner, server: RedisServer, model: ScriptedModel) -> None:
    model.token_delay = 0.01
    planner.sample.start_worker()
    client = planner.ask()
    client.wait_for("Day 1")
    server.process.signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    began = time.monotonic()
    answer = planner.answer(key_of(client))
    assert time.monotonic() - began < 5, "the model is not held up"
    assert client.wait() == 0, client.errors
    assert "No pieces come for now" in client.errors
    assert shown(client) == answer
    assert "starts again" not in client.output
    server.process.signal(signal.SIGCONT)


def test_redis_restarted_in_the_middle(planner: Planner, server: RedisServer, model: ScriptedModel) -> None:
    model.token_delay = 0.02
    worker = planner.sample.start_worker()
    client = planner.ask()
    client.wait_for("Day 1")
    server.process.kill()
    eventually(lambda: "Nothing is streamed" in worker.errors, "the worker has noticed")
    server.start()
    eventually(lambda: server.client().exists(f"agent-stream:{key_of(client)}"), "the stream continues")
    from_the_start = planner.reader(key_of(client))  # finds a stream whose beginning is gone
    assert client.wait() == 0, client.errors
    answer = planner.answer(key_of(client))
    assert shown(client) == answer
    assert from_the_start.wait() == 0
    assert text_of(chunks(from_the_start)) == answer


def test_a_worker_stops_while_redis_is_out_of_reach(planner: Planner, server: RedisServer) -> None:
    server.process.kill()
    worker = planner.sample.start_worker()
    assert planner.ask().wait() == 0
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert worker.errors.count("\n") == 1, worker.errors


def test_a_place_that_is_gone_makes_the_answer_start_again(planner: Planner, server: RedisServer) -> None:
    planner.sample.start_worker()
    client = planner.ask("--disconnect-after", "20")
    assert client.wait() == 0
    answer = planner.answer(key_of(client))
    server.client().delete(f"agent-stream:{key_of(client)}")
    resumed = planner.ask(*resume_arguments(client))
    assert resumed.wait() == 0, resumed.errors
    assert "What came before is no longer in the stream. The answer starts again." in resumed.output
    assert shown(resumed) == answer


def test_a_stream_that_expired_is_made_up_for_by_the_conversation(planner: Planner, server: RedisServer) -> None:
    planner.sample.start_worker(REDIS_STREAM_TTL_MINUTES="0.01")
    client = planner.ask(REDIS_STREAM_TTL_MINUTES="0.01")
    assert client.wait() == 0
    eventually(lambda: not server.client().keys(), "the stream expires")
    later = planner.ask("--session", key_of(client))
    assert later.wait() == 0
    assert later.errors == ""
    assert shown(later) == planner.answer(key_of(client))
    assert "starts again" not in later.output


# Limits, settings and arguments --------------------------------------------------------------------------------------


def test_nobody_waits_for_ever(planner: Planner) -> None:
    client = planner.ask("--timeout", "0.5", "Plan a weekend in Lisbon.")
    assert client.wait() == 1
    assert "Nothing was heard for 0.5 s" in client.errors
    assert "python worker.py" in client.errors
    assert "Traceback" not in client.errors
    planner.sample.start_worker()
    resumed = planner.ask(*resume_arguments(client))
    assert resumed.wait() == 0, resumed.errors
    assert shown(resumed) == planner.answer(key_of(client))


def test_a_worker_that_is_not_replaced(planner: Planner, model: ScriptedModel) -> None:
    model.token_delay = 0.01
    worker = planner.sample.start_worker()
    client = planner.ask("--timeout", "2")
    client.wait_for("Day 1")
    worker.kill()
    assert client.wait() == 1
    assert "--cursor" in resume_arguments(client)


def test_a_stream_lives_as_long_as_it_is_written_and_a_while_longer(planner: Planner, server: RedisServer) -> None:
    planner.sample.start_worker(REDIS_STREAM_TTL_MINUTES="3")
    client = planner.ask(REDIS_STREAM_TTL_MINUTES="3")
    stream = f"agent-stream:{key_of(client)}"
    client.wait_for("Day 1")
    server.client().expire(stream, 5)
    client.wait_for("Day 3")
    assert 170 < server.client().ttl(stream) <= 180
    assert client.wait() == 0
    assert server.client().keys() == [stream]


def test_a_conversation_that_has_not_begun_is_said_immediately(planner: Planner, server: RedisServer) -> None:
    began = time.monotonic()
    client = planner.ask("--session", "tuesday")
    assert_one_line(client, 1, "Nothing was asked in conversation tuesday.")
    assert "kept" not in client.errors
    server.process.kill()
    assert_one_line(planner.ask("--session", "tuesday"), 1, "Nothing was asked in conversation tuesday", "Redis")
    assert time.monotonic() - began < 40, "nobody waits for --timeout"


def test_a_first_question_in_a_conversation_with_a_chosen_key(planner: Planner) -> None:
    planner.sample.start_worker()
    client = planner.ask("--session", "tuesday", "Plan a weekend in Lisbon.")
    assert client.wait() == 0
    assert "begins now" in client.errors
    assert shown(client) == planner.answer("tuesday")


def test_a_setting_that_is_wrong(planner: Planner) -> None:
    for program in ("worker.py", "client.py"):
        process = planner.sample.run_client(program=program, REDIS_CONNECTION_STRING="redis://:s3/cr3t@localhost:6379")
        assert_one_line(process, 2, "REDIS_CONNECTION_STRING", "redis://HOST:6379")
        assert "s3" not in process.errors
    assert_one_line(planner.sample.run_client(REDIS_STREAM_TTL_MINUTES="ten"), 2, "REDIS_STREAM_TTL_MINUTES=ten")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_CONNECTION_STRING", "localhost:6379"),
        ("REDIS_CONNECTION_STRING", "redis://:s3cr3t@localhost:port"),
        ("REDIS_CONNECTION_STRING", "redis://localhost:6379?password=s3cr3t&colour=red"),
        ("REDIS_CONNECTION_STRING", "cache.example.net:6380,password=s3cr3t,ssl=True"),
        *(("REDIS_STREAM_TTL_MINUTES", minutes) for minutes in ("0", "-1", "nan", "inf", "1e300")),
    ],
)
def test_other_settings_that_are_wrong(
    name: str, value: str, modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    module = modules("03", "redis_stream")
    read = module.redis_client if name == "REDIS_CONNECTION_STRING" else module.stream_ttl
    with pytest.raises(modules("03", "hosting.program").UsageError, match=name) as error:
        read()
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([""], "empty"),
        (["--session", ""], "not empty"),
        (["--session", "a@b"], "no '@'"),
        (["--cursor", "1-0"], "needs --session"),
        (["--session", "abc", "--cursor", "newest"], "the id of a chunk"),
        (["--session", "abc", "--cursor", "1-0", "Plan a trip."], "takes no message"),
        (["--disconnect-after", "0"], "1 or more"),
        (["--timeout", "-3"], "positive number of seconds"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: list[str],
    says: str,
    modules: Callable[[str, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client = modules("03", "client")
    monkeypatch.setattr(sys, "argv", ["client.py", *arguments])
    with pytest.raises(SystemExit) as end:
        client.parse_arguments()
    assert end.value.code == 2
    assert says in capsys.readouterr().err


# Answers that are none -----------------------------------------------------------------------------------------------


def test_an_agent_that_only_calls_its_tools_has_not_answered(planner: Planner, model: ScriptedModel) -> None:
    call = {"name": "get_weather_forecast", "arguments": '{"destination": "Rome", "date": "today"}'}
    calls = [{"index": 0, "id": "call", "type": "function", "function": call}]
    model.say(
        "", said_with={"tool_calls": calls}, finish_reason="tool_calls", matches=lambda one: bool(one.get("tools"))
    )
    model.say("Function invocation limit reached. I stop here.")
    planner.sample.start_worker()
    client = planner.ask()
    assert client.wait() == 1
    assert "called its tools again and again" in client.errors
    assert "To continue" not in client.output
    late = planner.ask("--session", key_of(client))
    assert late.wait() == 1
    assert "called its tools again and again" in late.errors


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        ("Half a pl", {"finish_reason": "length"}, "cut off at the length"),
        (" ", {}, "answer is empty"),
        ("", {"said_with": {"refusal": "I do not plan that."}}, "refuses"),
    ],
)
def test_half_an_answer_an_empty_one_and_a_refusal_are_errors(
    reply: str, kind: dict[str, Any], says: str, planner: Planner, model: ScriptedModel
) -> None:
    model.say(reply, **kind)
    planner.sample.start_worker()
    assert_one_line(planner.ask(), 1, says)


def test_an_answer_without_room_in_its_conversation_is_lost_and_the_client_says_so(
    planner: Planner, model: ScriptedModel
) -> None:
    model.say("x" * 700_000, times=1)
    model.say("y" * 700_000, times=1)
    planner.sample.start_worker()
    first = planner.ask("Plan a weekend in Lisbon.")
    assert first.wait() == 0, first.errors
    second = planner.ask("--session", key_of(first), "What if it rains?")
    assert second.wait(40) == 1
    assert "The answer is lost: it does not fit" in second.errors
    assert "kept" not in second.errors
    assert len(planner.answers(key_of(first))) == 1


def test_silence_in_a_nearly_full_conversation_does_not_claim_that_the_question_is_kept(
    planner: Planner, model: ScriptedModel
) -> None:
    model.say("x" * 700_000, times=1)
    worker = planner.sample.start_worker()
    first = planner.ask("Plan a weekend in Lisbon.")
    assert first.wait() == 0, first.errors
    worker.kill()
    second = planner.ask("--session", key_of(first), "What if it rains?", "--timeout", "1")
    assert second.wait() == 1
    assert "Nothing was heard for 1 s" in second.errors
    assert "kept" not in second.errors


def test_what_a_model_writes_does_not_steer_the_terminal(planner: Planner, model: ScriptedModel) -> None:
    model.say("A \x1b[31mred\x1b[0m \u202etrip")
    planner.sample.start_worker()
    client = planner.ask()
    assert client.wait() == 0
    assert "A [31mred[0m trip" in client.output


# Password and TLS ----------------------------------------------------------------------------------------------------


@contextmanager
def tls(server: RedisServer, folder: Path) -> Iterator[str]:
    """An address that speaks TLS, and passes what it hears on to a Redis, which may have been built without TLS."""
    certificate, private_key = folder / "redis.crt", folder / "redis.key"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject]
    subprocess.run([*command, "-out", certificate, "-keyout", private_key], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, private_key)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def connect(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            redis_source, redis_target = await asyncio.open_connection("127.0.0.1", server.port)
        except OSError:
            target.close()
            return
        await asyncio.gather(copy(source, redis_target), copy(redis_source, target))

    started: Queue[tuple[int, Callable[[], object]]] = Queue()

    async def serve() -> None:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        async with await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context) as proxy:
            port = proxy.sockets[0].getsockname()[1]
            started.put((port, lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()

    serving = threading.Thread(target=lambda: asyncio.run(serve()))
    serving.start()
    port, stop = started.get(timeout=10)
    try:
        yield f"rediss://:s3cr3t@127.0.0.1:{port}?ssl_ca_certs={certificate}"
    finally:
        stop()
        serving.join()


def test_tls_and_a_password(planner: Planner, start: Start, tmp_path: Path) -> None:
    guarded = RedisServer(start, "--requirepass", "s3cr3t")
    with tls(guarded, tmp_path) as address:
        settings = {"REDIS_CONNECTION_STRING": address, "LOG_LEVEL": "debug"}
        worker = planner.sample.start_worker(**settings)
        client = planner.ask("--disconnect-after", "10", **settings)
        assert client.wait() == 0
        assert "[Disconnected after 10 chunks.]" in client.output
        answer = planner.answer(key_of(client))
        guarded.process.kill()
        later = planner.ask("--session", key_of(client), **settings)
        assert later.wait() == 0
        assert shown(later) == answer
        assert "No pieces come" in later.errors
        worker.stop()
    for process in (worker, client, later):
        assert "s3cr3t" not in process.output + process.errors


def test_a_certificate_that_nobody_vouches_for(planner: Planner, start: Start, tmp_path: Path) -> None:
    guarded = RedisServer(start, "--requirepass", "s3cr3t")
    with tls(guarded, tmp_path) as address:
        settings = {"REDIS_CONNECTION_STRING": address.partition("?")[0]}
        worker = planner.sample.start_worker(**settings)
        client = planner.ask(**settings)
        assert client.wait() == 0
        assert "certificate" in client.errors.lower()
        assert shown(client) == planner.answer(key_of(client))
        worker.stop()


def test_a_wrong_password(planner: Planner, start: Start) -> None:
    guarded = RedisServer(start, "--requirepass", "s3cr3t")
    settings = {"REDIS_CONNECTION_STRING": guarded.address.replace("://", "://:wr0ng@")}
    worker = planner.sample.start_worker(**settings)
    client = planner.ask(**settings)
    assert client.wait() == 0
    assert shown(client) == planner.answer(key_of(client))
    assert "password" in client.errors
    worker.stop()
    assert "password" in worker.errors
    assert "wr0ng" not in client.output + client.errors + worker.errors


# Attempts, losses and repetitions, made by hand ----------------------------------------------------------------------


class Hand:
    """The sample's writer and reader on the test's Redis, and a stored conversation that the test writes."""

    def __init__(self, modules: Callable[[str, str], ModuleType], server: RedisServer) -> None:
        self.stream = modules("03", "redis_stream")
        self.writer = modules("03", "redis_stream_callback")
        self.reader = modules("03", "redis_stream_response_handler")
        self.redis = server.client()
        self.turns: list[dict[str, Any]] = []

    def handler(self, **options: Any) -> Any:
        """A reader; its client lives as long as one event loop."""
        return self.reader.RedisStreamResponseHandler(
            redis_client=self.stream.redis_client(),
            stream_ttl=timedelta(minutes=1),
            stored=lambda key: self.reader.Conversation(json.dumps({"data": {"conversationHistory": self.turns}})),
            **options,
        )

    def read(self, *arguments: str) -> list[Any]:
        """All of an answer in the stream of the conversation `key`."""
        return read_all(self.handler(), "key", *arguments)

    def store(self, text: str, run: str = "run") -> None:
        """Let the run end with this answer."""
        message = {"role": "assistant", "contents": [{"$type": "text", "text": text}]}
        answer = {"$type": "response", "correlationId": run, "createdAt": "2026-11-22T12:00:00+00:00"}
        self.turns.append(answer | {"messages": [message]})

    async def write(self, pieces: list[tuple[str, str]], run: str = "run") -> None:
        """Write attempts at a run, each in its own task as in a worker; a piece is an attempt's name and a text."""
        redis = self.stream.redis_client()
        callback = self.writer.RedisStreamCallback(redis, timedelta(minutes=1))
        queues: dict[str, asyncio.Queue[str]] = {name: asyncio.Queue() for name, _ in pieces}

        async def attempt(queue: asyncio.Queue[str]) -> None:
            while True:
                await callback.on_streaming_response_update(update(await queue.get()), context(run))
                await callback._sending
                queue.task_done()

        tasks = [asyncio.create_task(attempt(queue)) for queue in queues.values()]
        for name, text in pieces:
            await queues[name].put(text)
            await queues[name].join()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await redis.aclose()


@pytest.fixture
def hand(
    modules: Callable[[str, str], ModuleType], server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hand]:
    monkeypatch.setenv("REDIS_CONNECTION_STRING", server.address)
    hand = Hand(modules, server)
    yield hand
    hand.redis.close()


def context(run: str) -> AgentCallbackContext:
    return AgentCallbackContext("TravelPlanner", run, session_id="key")


def update(text: str) -> AgentResponseUpdate:
    return AgentResponseUpdate(contents=[Content.from_text(text)])


def response(text: str) -> AgentResponse:
    return AgentResponse(messages=[Message("assistant", [text])], created_at="2026-11-22T12:00:00+00:00")


def test_the_newest_attempt_wins_while_an_old_one_still_writes(hand: Hand) -> None:
    written = [("old", "half "), ("new", "a new "), ("old", "of it "), ("new", "answer "), ("old", "more")]

    async def follow() -> list[tuple[str, bool, bool]]:
        await hand.write(written)
        seen = []
        async with hand.handler() as handler:
            async for chunk in handler.read_stream("key", correlation_id="run"):
                if pieces([chunk]):
                    seen.append((chunk.text, chunk.restarted, chunk.is_done))
                if len(seen) == 3:
                    hand.store("a new answer indeed")
        return seen

    assert asyncio.run(follow()) == [
        ("half ", False, False),
        ("a new ", True, False),
        ("answer ", False, False),
        ("indeed", False, True),
    ]


def test_an_attempt_that_was_stored_though_a_newer_one_was_shown(hand: Hand) -> None:
    asyncio.run(hand.write([("first", "the first"), ("second", "another")]))
    hand.store("the first")
    *_, last = hand.read()
    assert (last.text, last.restarted, last.is_done) == ("the first", True, True)


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_lost_piece_is_repaired_by_the_stored_answer(lost: int, hand: Hand) -> None:
    texts = ["one ", "two ", "three ", "four ", "five"]
    asyncio.run(hand.write([("only", text) for text in texts]))
    ids = [entry_id for entry_id, _ in hand.redis.xrange("agent-stream:key")]
    hand.redis.xdel("agent-stream:key", ids[lost])
    hand.store("".join(texts))
    received = hand.read()
    *shown, last = received
    assert [chunk.text for chunk in shown] == [text for text in texts if text != texts[lost]]
    assert (last.text, last.restarted) == (("five", False) if lost == 4 else ("".join(texts), True))
    if lost < 3:  # also for one who left after it, and comes back
        assert [(chunk.text, chunk.restarted) for chunk in hand.read(ids[3])] == [("five", False), (last.text, True)]


def test_what_redis_received_twice_is_repaired_by_the_stored_answer(hand: Hand) -> None:
    asyncio.run(hand.write([("only", "one "), ("only", "two "), ("only", "three")]))
    for _, fields in hand.redis.xrange("agent-stream:key"):
        hand.redis.xadd("agent-stream:key", fields)
    hand.store("one two three")
    *_, last = hand.read()
    assert (last.text, last.restarted, last.is_done) == ("one two three", True, True)


def test_what_does_not_belong_in_a_stream_does_no_harm(hand: Hand) -> None:
    async def announce() -> None:
        async with hand.handler() as handler:
            await handler.announce("key", "run")

    hand.redis.xadd("agent-stream:key", {"colour": "red", "at": "-1"})
    asyncio.run(announce())
    odd = [
        {"run": "run", "attempt": "a", "at": "x", "text": "odd"},
        {"run": "run", "text": "no attempt"},
        {"id": "run"},
    ]
    foreign = [hand.redis.xadd("agent-stream:key", fields) for fields in odd]
    hand.store("right")
    *_, last = hand.read()
    assert (last.text, last.is_done) == ("right", True)
    *_, last = hand.read(foreign[-1])
    assert (last.text, last.restarted, last.is_done) == ("right", True, True)


def test_a_key_in_redis_that_holds_something_else_is_a_notice_and_the_answer_comes(hand: Hand) -> None:
    hand.redis.set("agent-stream:key", "a string")
    asyncio.run(hand.write([("only", "one"), ("only", " two")]))
    hand.store("one two")
    notice, last = hand.read()
    assert "WRONGTYPE" in notice.notice
    assert (last.text, last.restarted, last.is_done) == ("one two", False, True)


def test_a_reader_of_the_collection_that_this_one_mirrors_finds_text_and_end(hand: Hand) -> None:
    async def write() -> None:
        redis = hand.stream.redis_client()
        callback = hand.writer.RedisStreamCallback(redis, timedelta(minutes=1))
        await callback.on_streaming_response_update(update("one "), context("run"))
        await callback.on_streaming_response_update(update("two"), context("run"))
        await callback.on_agent_response(response("one two"), context("run"))
        await callback._sending
        await redis.aclose()

    asyncio.run(write())
    entries = [fields for _, fields in hand.redis.xrange("agent-stream:key")]
    assert [fields.get("text", "") for fields in entries] == ["one ", "two", ""]
    assert [fields.get("done") for fields in entries] == [None, None, "true"]


def test_a_stream_keeps_a_bounded_number_of_entries(hand: Hand) -> None:
    asyncio.run(write_quickly(hand, 12_000))
    assert 10_000 <= hand.redis.xlen("agent-stream:key") < 10_200
    assert hand.redis.memory_usage("agent-stream:key") < 1_500_000
    text = "".join(f"{number} " for number in range(12_000))
    hand.store(text)
    newest = hand.redis.xrevrange("agent-stream:key", count=1)[0][0]
    for arguments in ((), (newest,)):
        *_, last = hand.read(*arguments)
        assert (last.text, last.restarted, last.is_done) == (text, True, True)


async def write_quickly(hand: Hand, number: int, patience: float = 60) -> float:
    """Write pieces as fast as they can be queued; returns the seconds that it took. Waits for Redis afterwards."""
    redis = hand.stream.redis_client()
    callback = hand.writer.RedisStreamCallback(redis, timedelta(minutes=1))
    began = time.monotonic()
    for piece in range(number):
        await callback.on_streaming_response_update(update(f"{piece} "), context("run"))
        await asyncio.sleep(0)
    took = time.monotonic() - began
    await asyncio.wait([callback._sending], timeout=patience)
    callback._sending.cancel()
    await asyncio.gather(callback._sending, return_exceptions=True)
    await redis.aclose()
    return took


def test_pieces_are_queued_without_waiting_for_redis(hand: Hand, server: RedisServer) -> None:
    server.process.signal(signal.SIGSTOP)
    try:
        assert asyncio.run(write_quickly(hand, 1000, patience=0.1)) < 0.5
    finally:
        server.process.signal(signal.SIGCONT)


def test_a_worker_holds_a_bounded_number_of_pieces_while_redis_is_away(hand: Hand, server: RedisServer) -> None:
    server.process.kill()

    async def write() -> int:
        redis = hand.stream.redis_client()
        callback = hand.writer.RedisStreamCallback(redis, timedelta(minutes=1))
        for _ in range(hand.writer.PENDING_ENTRIES + 100):
            await callback.on_streaming_response_update(update("x"), context("run"))
        held = len(callback._pending)
        callback._sending.cancel()
        await asyncio.gather(callback._sending, return_exceptions=True)
        await redis.aclose()
        return held

    assert asyncio.run(write()) == hand.writer.PENDING_ENTRIES
