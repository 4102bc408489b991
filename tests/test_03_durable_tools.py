"""Durable tools of sample 03: whatever is killed, the effect of a call is there once, and the answer mentions it."""

import json
import re
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from agent_framework_durabletask import AgentSessionId
from conftest import ROOT, Process, Sample, Start, eventually
from durabletask.client import OrchestrationQuery, OrchestrationState, OrchestrationStatus
from durabletask.entities import EntityInstanceId
from orchestrations import scheduler_client
from scripted_model import ScriptedModel
from test_03_streaming import RedisServer, has_results
from test_outage import StoredScheduler

from local_services.redis_server import redis_program

WORKER = ROOT / "tests" / "booking_worker.py"
DINNER = "Reserve a table for 4 at Chez Paul in Lisbon tomorrow at 20:00."
RESERVED = "Reserved. A table for 4 at Chez Paul, tomorrow, 20:00."


class Bookings:
    """Sample 03 with a tool that can be stopped, and what its scheduler and its folder have."""

    def __init__(self, sample: Sample, start: Start, folder: Path) -> None:
        self.sample, self.folder = sample, folder
        self._start = start
        sample.settings |= {
            "REDIS_CONNECTION_STRING": "redis://127.0.0.1:9",  # nobody listens: the answer comes without tokens
            "RESERVATIONS_DIRECTORY": str(folder),
            "RUNS": str(folder / "RUNS"),
        }

    def start_worker(self, **settings: str) -> Process:
        """Start the worker, and wait until it is ready."""
        environment = self.sample.environment(**settings)
        worker = self._start(sys.executable, str(WORKER), cwd=self.sample.folder, env=environment)
        worker.wait_for("Worker ready")
        return worker

    def ask(self, text: str = DINNER, key: str = "", turn: str = "") -> tuple[str, str]:
        """Ask without waiting; returns the conversation's key and the turn's correlation id."""
        key, turn = key or uuid.uuid4().hex, turn or uuid.uuid4().hex
        with scheduler_client(self.sample) as client:
            client.signal_entity(entity(key), "run", {"message": text, "correlationId": turn})
        return key, turn

    def turns(self, key: str) -> list[dict[str, Any]]:
        """The conversation as it is stored."""
        with scheduler_client(self.sample) as client:
            found = client.get_entity(entity(key))
        state = found.get_state() if found else None
        return json.loads(state)["data"]["conversationHistory"] if state else []

    def answer(self, key: str, turn: str) -> str:
        """The text of an answer, once it is stored."""

        def look() -> str:
            turns = [one for one in self.turns(key) if one["correlationId"] == turn and one["$type"] == "response"]
            assert len(turns) <= 1, "a turn is stored twice"
            contents = [content for one in turns for message in one["messages"] for content in message["contents"]]
            return "".join(content.get("text") or content.get("message") or "" for content in contents)

        return eventually(look, "the answer is stored")

    @property
    def effects(self) -> list[str]:
        """The reservations."""
        return [file.read_text().strip() for file in (self.folder / "reservations").glob("*.txt")]

    @property
    def runs(self) -> list[str]:
        """The keys with which the tool was run, each time."""
        file = self.folder / "RUNS"
        return file.read_text().split() if file.exists() else []

    def calls(self) -> list[OrchestrationState]:
        """The orchestrations of calls."""
        with scheduler_client(self.sample) as client:
            return client.get_all_orchestration_states(OrchestrationQuery(fetch_inputs_and_outputs=True))

    def command(self, *arguments: str) -> Process:
        """Run approve.py."""
        return self.sample.run_client(*arguments, program="approve.py")


def entity(key: str) -> EntityInstanceId:
    return EntityInstanceId(AgentSessionId("TravelPlanner", key).entity_name, key)


@pytest.fixture
def bookings(sample: Callable[[str], Sample], start: Start, tmp_path: Path) -> Bookings:
    return Bookings(sample("03"), start, tmp_path)


def tool_calls(*arguments: dict[str, Any]) -> dict[str, Any]:
    """Calls of the tool, as fields of a model's message."""
    return {
        "tool_calls": [
            {
                "index": index,
                "id": uuid.uuid4().hex,
                "type": "function",
                "function": {"name": "reserve_table", "arguments": json.dumps(one)},
            }
            for index, one in enumerate(arguments)
        ]
    }


def dinner(**changes: Any) -> dict[str, Any]:
    return {"restaurant": "Chez Paul", "date": "tomorrow", "time": "20:00", "people": 4, **changes}


# Once ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["yes", "no"])
def test_a_call_is_an_orchestration_with_arguments_and_result(bookings: Bookings, stream: str) -> None:
    worker = bookings.start_worker(STREAM=stream)
    key, turn = bookings.ask()
    assert RESERVED in bookings.answer(key, turn)
    assert bookings.effects == [RESERVED.removeprefix("Reserved. ")]
    (call,) = bookings.calls()
    assert (call.name, call.runtime_status) == ("reserve_table", OrchestrationStatus.COMPLETED)
    assert json.loads(call.serialized_input or "")["arguments"] == dinner()
    assert call.get_output() == RESERVED
    assert bookings.runs == [call.instance_id]
    assert worker.errors.count("Traceback") == 0


@pytest.mark.parametrize("stream", ["yes", "no"])
@pytest.mark.parametrize(("stop_at", "runs"), [("before", 2), ("during", 2), ("after", 2)])
def test_a_worker_killed_at_the_effect(bookings: Bookings, stop_at: str, runs: int, stream: str) -> None:
    worker = bookings.start_worker(STOP_AT=stop_at, STREAM=stream)
    key, turn = bookings.ask()
    eventually((bookings.folder / "STOPPED").exists, f"the tool is {stop_at} its effect")
    assert len(bookings.effects) == (stop_at == "after")
    worker.kill()
    bookings.start_worker(STREAM=stream)
    assert RESERVED in bookings.answer(key, turn)
    assert len(bookings.effects) == len(bookings.calls()) == len(set(bookings.runs)) == 1
    assert len(bookings.runs) == runs, "an activity runs at least once"


@pytest.mark.parametrize("stream", ["yes", "no"])
def test_a_worker_killed_before_the_turn_is_stored(bookings: Bookings, model: ScriptedModel, stream: str) -> None:
    model.held, model.held_for = threading.Event(), has_results
    worker = bookings.start_worker(STREAM=stream)
    key, turn = bookings.ask()
    eventually(lambda: any(map(has_results, model.requests)), "the model has the result")
    worker.kill()
    model.held.set()
    bookings.start_worker(STREAM=stream)
    assert RESERVED in bookings.answer(key, turn)
    assert len(bookings.effects) == len(bookings.runs) == 1, "the tool is not run again"
    assert len(model.requests) == 4, "the model is"


@pytest.mark.parametrize("after", [0, 1])
def test_a_stream_that_breaks_off_repeats_no_call(bookings: Bookings, model: ScriptedModel, after: int) -> None:
    bookings.start_worker()
    model.break_off(after, matches=has_results)
    key, turn = bookings.ask()
    assert RESERVED in bookings.answer(key, turn)
    assert len(list(filter(has_results, model.requests))) == 2, "the model was asked for the text again"
    assert len(bookings.effects) == len(bookings.runs) == 1


def test_the_same_call_in_two_turns_is_two_effects(bookings: Bookings) -> None:
    bookings.start_worker()
    first = bookings.ask()
    second = bookings.ask(key=first[0])
    for asked in (first, second, bookings.ask()):
        assert RESERVED in bookings.answer(*asked)
    assert len(bookings.effects) == len(set(bookings.runs)) == 3


def test_parallel_calls_are_one_effect_each(bookings: Bookings, model: ScriptedModel) -> None:
    """Also two with the same arguments: the model may want two tables. None is repeated with the turn."""

    def asks_first(request: dict[str, Any]) -> bool:
        return not has_results(request)

    calls = tool_calls(dinner(), dinner(people=2), dinner())
    model.say("", said_with=calls, finish_reason="tool_calls", matches=asks_first)
    model.held, model.held_for = threading.Event(), has_results
    worker = bookings.start_worker()
    asked = bookings.ask()
    eventually(lambda: any(map(has_results, model.requests)), "the model has the results")
    worker.kill()
    model.held.set()
    bookings.start_worker()
    assert "A table for 2" in bookings.answer(*asked)
    assert sorted(effect[:11] for effect in bookings.effects) == ["A table for"] * 3
    assert len(bookings.runs) == len(set(bookings.runs)) == 3


def test_a_call_that_fails_is_tried_again_and_then_returned_as_failed(bookings: Bookings, model: ScriptedModel) -> None:
    bookings.start_worker(FAILURES="4")
    asked = bookings.ask()
    assert "reserve_table failed: " in bookings.answer(*asked)
    assert "The restaurant does not answer." in bookings.answer(*asked)
    assert len(bookings.runs) == 3
    again = bookings.ask(key=asked[0])
    assert RESERVED in bookings.answer(*again), "another turn is another call, and its second try succeeds"
    assert len(bookings.effects) == 1


def test_two_starters_at_the_same_moment(
    bookings: Bookings, modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was thought dead, and its successor: both have looked, and there was no orchestration."""
    for name, value in bookings.sample.settings.items():
        monkeypatch.setenv(name, value)
    durable_tools = modules("03", "durable_tools")
    call = durable_tools.ToolCall(tool="reserve_table", arguments=dinner(), conversation="@planner@key")
    barrier, refused = threading.Barrier(2), []
    client = durable_tools._client()
    look, begin = client.get_orchestration_state, client.schedule_new_orchestration

    def looked(*arguments: Any, **options: Any) -> Any:
        found = look(*arguments, **options)
        if not refused:
            barrier.wait(10)
        return found

    def starts(*arguments: Any, **options: Any) -> Any:
        try:
            return begin(*arguments, **options)
        except grpc.RpcError:
            refused.append(arguments)
            raise
        finally:
            barrier.wait(10)

    monkeypatch.setattr(client, "get_orchestration_state", looked)
    monkeypatch.setattr(client, "schedule_new_orchestration", starts)
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(durable_tools.result_of, "one-id", call) for _ in range(2)]
        eventually(lambda: refused, "one of the two was refused")
        bookings.start_worker()
        assert [one.result(60) for one in results] == [RESERVED, RESERVED]
    assert bookings.runs == ["one-id"]


def test_three_times_as_many_turns_as_threads(bookings: Bookings) -> None:
    """Each turn holds a thread while it waits for its tool, which needs another one."""
    bookings.start_worker(THREADS="2", TOOL_SECONDS="0.1")
    for asked in [bookings.ask() for _ in range(12)]:  # 2 turns at a time, and 4 threads
        assert RESERVED in bookings.answer(*asked)
    assert len(bookings.effects) == len(bookings.runs) == 12


def test_a_call_that_takes_long_delays_no_other_conversation(bookings: Bookings) -> None:
    """All agents of a worker share one event loop."""
    bookings.start_worker(STOP_AT="before")
    bookings.ask()
    eventually((bookings.folder / "STOPPED").exists, "the tool runs")
    assert bookings.answer(*bookings.ask("Hello!"))


# Approval --------------------------------------------------------------------------------------------------------


def waiting_call(bookings: Bookings) -> str:
    """The id of the call that waits for approval."""
    (call,) = eventually(bookings.calls, "there is a call")
    return call.instance_id


def test_approved_after_worker_and_scheduler_were_killed(
    bookings: Bookings, start: Start, model: ScriptedModel, tmp_path: Path
) -> None:
    scheduler = StoredScheduler(start, tmp_path / "state.db")
    bookings.sample.settings["ENDPOINT"] = scheduler.address
    worker = bookings.start_worker(APPROVAL_SECONDS="3600")
    key, turn = bookings.ask()
    said = bookings.answer(key, turn)
    call = waiting_call(bookings)
    assert f"approval, ID {call}" in said
    assert not bookings.effects
    worker.kill()
    scheduler.kill()
    scheduler.start()
    listed = bookings.command("list")
    assert call in listed.output
    assert "Chez Paul" in listed.output
    assert "no worker has read it" in bookings.command("approve", call, "--timeout", "1").errors
    bookings.start_worker(APPROVAL_SECONDS="3600")
    assert RESERVED in bookings.answer(key, f"{call}-decided")
    assert len(bookings.effects) == len(bookings.runs) == 1
    (question,) = [one for one in bookings.turns(key) if one["correlationId"] != turn and one["$type"] == "request"]
    (message,) = question["messages"]
    assert message["role"] == "system"
    assert message["contents"][0]["text"].startswith("Not written by the user.")
    assert question["orchestrationId"] == call
    assert bookings.command("list").output == ""
    late = bookings.command("reject", call)
    assert (late.wait(), "waits for a decision" in late.errors) == (1, True)


def test_the_sample_as_it_is(bookings: Bookings) -> None:
    """A plan with a table is one answer, and more than eight people need approval."""
    bookings.sample.start_worker()
    answer = bookings.answer(*bookings.ask("Plan a weekend in Paris, and reserve a table for dinner."))
    assert "**Arranged:** Reserved. · A table for 2 at a good restaurant in Paris" in answer
    assert "Day 2" in answer
    assert "approval, ID" in bookings.answer(*bookings.ask("Reserve a table for 12 in Lisbon."))
    assert len(bookings.effects) == 1


def test_rejected(bookings: Bookings) -> None:
    bookings.start_worker(APPROVAL_SECONDS="3600")
    key, turn = bookings.ask()
    bookings.answer(key, turn)
    call = waiting_call(bookings)
    rejected = bookings.command("reject", call, "--reason", "Too late in the evening.")
    assert (rejected.output, rejected.errors) == ("Rejected.\n", "")
    assert "rejected, and not done. Too late in the evening." in bookings.answer(key, f"{call}-decided")
    assert not bookings.runs


def test_nobody_decides_in_time(bookings: Bookings) -> None:
    bookings.start_worker(APPROVAL_SECONDS="0.5")
    key, turn = bookings.ask()
    bookings.answer(key, turn)
    call = waiting_call(bookings)
    assert "nobody approved it in time" in bookings.answer(key, f"{call}-decided")
    assert not bookings.runs
    late = bookings.command("approve", call)
    assert late.wait() == 1


def test_what_fails_after_its_approval_is_told_too(bookings: Bookings) -> None:
    bookings.start_worker(APPROVAL_SECONDS="3600", FAILURES="3")
    key, turn = bookings.ask()
    bookings.answer(key, turn)
    call = waiting_call(bookings)
    assert bookings.command("approve", call).wait() == 0
    assert "was approved, and failed: " in bookings.answer(key, f"{call}-decided")
    assert not bookings.effects


@pytest.mark.parametrize(
    "decision",
    [
        {"approved": True},
        {"approved": True, "call": "0" * 64},
        {"approved": "yes", "call": None},
        "yes",
        {"approved": True, "call": None, "Call": "x"},
    ],
)
def test_an_approval_of_something_else_counts_for_nothing(bookings: Bookings, decision: Any) -> None:
    bookings.start_worker(APPROVAL_SECONDS="3600")
    key, turn = bookings.ask()
    bookings.answer(key, turn)
    call = waiting_call(bookings)
    fingerprint = re.findall(r'"call": "(\w+)"', str(bookings.calls()[0].get_custom_status()))[0]
    if isinstance(decision, dict) and decision.get("call", "") is None:
        decision = {**decision, "call": fingerprint}
    with scheduler_client(bookings.sample) as client:
        client.raise_orchestration_event(call, "HumanApproval", data=decision)
    eventually(lambda: "ignored" in str(bookings.calls()[0].get_custom_status()), "it was read")
    assert not bookings.runs
    assert bookings.command("approve", call).wait() == 0
    assert RESERVED in bookings.answer(key, f"{call}-decided")


def test_the_turn_that_tells_cannot_call(bookings: Bookings, model: ScriptedModel) -> None:
    def tells(request: dict[str, Any]) -> bool:
        return "Not written by the user" in str(request["messages"][-1].get("content"))

    bookings.start_worker(APPROVAL_SECONDS="3600")
    key, turn = bookings.ask()
    bookings.answer(key, turn)
    call = waiting_call(bookings)
    model.say("", said_with=tool_calls(dinner()), finish_reason="tool_calls", matches=tells)
    assert bookings.command("approve", call).wait() == 0
    assert "Refused" in bookings.answer(key, f"{call}-decided")
    assert [request["tool_choice"] for request in model.requests if tells(request)] == ["none"]
    assert len(bookings.calls()) == len(bookings.runs) == 1


@pytest.mark.skipif(not redis_program(), reason="needs a real redis-server")
def test_a_client_that_comes_between_decision_and_answer_waits_for_it(
    bookings: Bookings, start: Start, model: ScriptedModel
) -> None:
    bookings.sample.settings["REDIS_CONNECTION_STRING"] = RedisServer(start).address
    bookings.start_worker(APPROVAL_SECONDS="3600")
    key, turn = bookings.ask()
    bookings.answer(key, turn)
    model.held = threading.Event()
    assert bookings.command("approve", waiting_call(bookings)).wait() == 0
    client = bookings.sample.start_client("--session", key)
    client.wait_for("A call was decided on.")
    model.held.set()
    assert (client.wait(), RESERVED in client.output) == (0, True), client.output + client.errors


@pytest.mark.skipif(not redis_program(), reason="needs a real redis-server")
def test_a_client_that_follows_the_conversation_sees_it_come(bookings: Bookings, start: Start) -> None:
    bookings.sample.settings["REDIS_CONNECTION_STRING"] = RedisServer(start).address
    bookings.start_worker(APPROVAL_SECONDS="3600")
    asked = bookings.sample.run_client(DINNER)
    assert (asked.wait(), asked.errors) == (0, "")
    call = waiting_call(bookings)
    assert f"approval, ID {call}" in asked.output
    follower = bookings.sample.start_client("--session", asked.wait_for(r"Conversation (\w+)")[1])
    follower.wait_for(f"waits for approval: python approve.py approve {call}]")
    assert bookings.command("approve", call).wait() == 0
    assert (follower.wait(), RESERVED in follower.output) == (0, True), follower.output + follower.errors
    late = bookings.sample.run_client("--session", asked.wait_for(r"Conversation (\w+)")[1])
    assert "decided" not in late.output
    assert (late.wait(), RESERVED in late.output, "waits" in late.output) == (0, True, False)
