"""The dashboard's data, without a browser: words, conversations, histories, drafts, and a task hub's lists."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import durabletask.history as h
import pytest
from conftest import eventually
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.task import FailureDetails, OrchestrationContext

from local_services.dashboard import approval, conversation, history, words
from local_services.dashboard.conversation import Part
from local_services.dashboard.scheduler import Hub, SchedulerProblem

BEGIN = datetime(2026, 11, 22, 12, 0, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


# Words ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.085, "85 ms"),
        (1.25, "1.2 s"),
        (59, "59 s"),
        (60, "1 min"),
        (184, "3 min 4 s"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "just now"), (5, "5 s ago"), (125, "2 min ago"), (7300, "2 h ago"), (-185, "in 3 min")]
)
def test_times_ago(seconds: float, said: str) -> None:
    assert words.ago(words.now() - timedelta(seconds=seconds)).startswith(said)


@pytest.mark.parametrize(
    ("payload", "read"),
    [
        (None, ""),
        ('"a\\ntext"', "a\ntext"),
        ('{"a":[1]}', '{\n  "a": [\n    1\n  ]\n}'),
        ('{"not": json', '{"not": json'),
        ("[" * 100_000, "[" * 100_000),  # too deep for Python's parser
        ('"Waiting\\n{\\"a\\":1}"', 'Waiting\n{\n  "a": 1\n}'),
        ("0", "0"),
    ],
)
def test_payloads_for_reading(payload: str | None, read: str) -> None:
    assert words.pretty(payload) == read


@pytest.mark.parametrize(
    "text", ["2026-11-22T12:00:00.5Z", "2026-11-22T12:00:00.5000001+00:00", "2026-11-22T12:00:00.5"]
)
def test_times_of_other_platforms(text: str) -> None:
    assert words.parsed_time(text) == at(0.5)


def test_a_failure_names_its_causes() -> None:
    details = FailureDetails("activity failed", "TaskFailed", "line 1\n", FailureDetails("no disk", "OSError", None))
    assert words.failure_text(details) == "TaskFailed: activity failed\nline 1\nOSError: no disk"


# Conversations -------------------------------------------------------------------------------------------------------

STATE = {
    "data": {
        "conversationHistory": [
            {
                "$type": "request",
                "createdAt": "2026-11-22T12:00:05.9+00:00",
                "orchestrationId": "abc",
                "messages": [{"role": "user", "contents": [{"$type": "text", "text": "Where to?"}]}],
            },
            {
                "$type": "response",
                "createdAt": "2026-11-22T12:00:05Z",
                "usage": {"inputTokenCount": 5, "outputTokenCount": 7, "totalTokenCount": 12},
                "messages": [
                    {
                        "role": "assistant",
                        "authorName": "Planner",
                        "contents": [{"$type": "functionCall", "callId": "1", "name": "look", "arguments": '{"a": 1}'}],
                    },
                    {"role": "tool", "contents": [{"$type": "functionResult", "callId": "1", "result": ["x"]}]},
                    {"role": "assistant", "contents": [{"$type": "text", "text": "There."}, {"$type": "usage"}]},
                ],
            },
            {
                "$type": "response",
                "createdAt": "never",
                "messages": [{"contents": [{"$type": "error", "errorCode": "Busy", "message": "later"}, {"?": 1}]}],
            },
        ]
    }
}


def test_a_conversation_with_tools_and_errors() -> None:
    found = conversation.entries(json.dumps(STATE))
    assert found
    request, response, failure = found
    assert (request.is_request, request.author, request.orchestration_id) == (True, "user", "abc")
    assert response.author == "Planner"
    assert response.parts == [
        Part("call", '{\n  "a": 1\n}', "look", "1"),
        Part("result", '[\n  "x"\n]', "", "1"),
        Part("text", "There."),
    ]
    assert response.tokens == {"input": 5, "output": 7, "total": 12}
    assert request.time
    assert response.time == request.time  # the response's time, in whole seconds, is before the request's
    assert failure.parts[0] == Part("error", "Busy: later")
    assert failure.parts[1].kind == "other"
    assert failure.time is None
    assert conversation.summary(json.dumps(STATE), "dafx-planner") == conversation.Summary("Planner", 2, 12)


@pytest.mark.parametrize(
    "state", ["", "no json", "[]", '{"data": 1}', '{"data": {"conversationHistory": {}}}', '{"data": null}']
)
def test_what_is_no_conversation(state: str) -> None:
    assert conversation.entries(state) is None
    assert conversation.summary(state, "dafx-joker") == conversation.Summary("joker", 0, 0)


@pytest.mark.parametrize(
    "entry", [{}, {"messages": 1}, {"messages": [{"contents": ["x"]}]}, {"usage": [], "messages": [None]}]
)
def test_entries_that_are_not_as_they_should_be(entry: Any) -> None:
    assert len(conversation.entries(json.dumps({"data": {"conversationHistory": [entry, 1]}})) or []) == 1


# Histories -----------------------------------------------------------------------------------------------------------


def call(number: str, seconds: float, agent: str) -> h.HistoryEvent:
    return h.EntityOperationCalledEvent(
        1, at(seconds), number, "run", input='{"message": "Why?"}', target_instance_id=f"@dafx-{agent}@key{number}"
    )


def answer(number: str, seconds: float, **content: str) -> h.HistoryEvent:
    message = {"author_name": "Writer", "contents": [content]}
    return h.EntityOperationCompletedEvent(-1, at(seconds), number, json.dumps({"messages": [message]}))


def test_steps_in_time() -> None:
    found = history.steps(
        [
            h.ExecutionStartedEvent(-1, at(0), "pattern"),
            call("a", 0.1, "writer"),
            call("b", 0.1, "writer"),
            h.OrchestratorStartedEvent(-1, at(1.1)),
            answer("b", 2.1, type="error", message="busy"),
            answer("a", 1.1, type="text", text="Because."),
            h.TaskScheduledEvent(3, at(2.2), "publish", input='"x"'),
            h.TimerCreatedEvent(4, at(2.2), fire_at=at(302.2)),
            h.TaskFailedEvent(-1, at(2.5), 3, FailureDetails("no disk", "OSError", None)),
            h.OrchestratorStartedEvent(-1, at(9.7)),
            h.EventRaisedEvent(-1, at(9.6), "Go", '{"approved": true}'),
            h.SubOrchestrationInstanceCreatedEvent(5, at(9.7), "child-1", "child"),
            h.SubOrchestrationInstanceCompletedEvent(-1, at(9.9), 5, '"done"'),
            h.ExecutionCompletedEvent(-1, at(10), 1),
        ]
    )
    by_name = {f"{step.kind} {step.name} {step.link}".strip(): step for step in found}
    first, second = by_name["agent Writer @dafx-writer@keya"], by_name["agent Writer @dafx-writer@keyb"]
    assert (first.asked, first.answered, first.failed, first.seconds(BEGIN)) == ("Why?", "Because.", False, 1.0)
    assert (second.answered, second.failed) == ("busy", True)
    assert by_name["activity publish"].failed
    assert "no disk" in by_name["activity publish"].answered
    timer = by_name["timer timer of 5 min"]
    assert (timer.end, timer.abandoned) == (at(10), True)
    assert by_name["event Go"].seconds(BEGIN) == 7.1  # since it had nothing else to do
    assert by_name["orchestration child child-1"].answered == "done"


def test_an_open_wait_is_a_step_unless_something_else_goes_on() -> None:
    idle = [h.ExecutionStartedEvent(-1, at(0), "pattern"), h.TimerFiredEvent(-1, at(1), at(1), 7)]
    (waiting,) = history.steps(idle, waiting_for="Go")
    assert (waiting.kind, waiting.name, waiting.start, waiting.end) == ("event", "Go", at(1), None)
    assert history.steps(idle) == []
    assert [step.kind for step in history.steps([call("a", 0.5, "writer"), *idle], "Go")] == ["agent"]


def test_a_diagram_holds_no_syntax_of_its_texts() -> None:
    hostile = 'x"]\nend; Note over P0: <b>%%{init}%%#semi; --> participant'
    steps = [history.Step("agent", hostile, at(0), at(1), asked=hostile, answered=hostile, failed=True)]
    lines = history.sequence_diagram(steps).splitlines()
    assert len(lines) == 5  # the heading, two participants, two messages
    for line, syntax in zip(lines[2:], ("participant P0 as ", "O->>P0: ", "P0--xO: "), strict=True):
        assert line.startswith(f"  {syntax}")
        assert not set(line.removeprefix(f"  {syntax}").replace("<br/>", "")) & set("<>%|&")
    assert not set(lines[2].removeprefix("  participant P0 as ").replace("<br/>", "")) & set('"[]{}:=')
    assert history.sequence_diagram([]) == ""


def test_the_history_event_by_event() -> None:
    events = [
        h.TaskCompletedEvent(-1, at(1), 3, '"done"'),
        h.TaskFailedEvent(-1, at(1), 3, FailureDetails("no disk", "OSError", None)),
        h.ExecutionCompletedEvent(-1, at(2), 1),
    ]
    done, failed, completed = history.lines(events)
    assert (done.title, done.payloads) == ("Task completed", [("result", '"done"')])
    assert failed.payloads == [("failure", "OSError: no disk")]
    assert completed.about == "COMPLETED"


# Drafts --------------------------------------------------------------------------------------------------------------


def status(headline: str, **about: Any) -> str:
    return json.dumps(f"{headline}\n{json.dumps(about)}")


def test_a_draft_that_waits() -> None:
    found = approval.waiting(
        status(
            "Requesting human feedback on draft 2 of 3",
            attempt=2,
            deadline="2026-11-22T12:05:00Z",
            draft={"title": "Maps", "content": "They fold."},
            last_decision={"decision_id": "x", "ignored": "It came too early."},
        )
    )
    assert found
    assert found == approval.Approval(
        "Requesting human feedback on draft 2 of 3", "Maps", "They fold.", 2, at(300), "It came too early."
    )
    decision = found.decision(False, "Shorter.")
    assert decision == {"approved": False, "feedback": "Shorter.", "attempt": 2, "decision_id": decision["decision_id"]}


@pytest.mark.parametrize("told", [None, "", '"Publishing\\n{}"', "{}", "17", '{"Requesting human feedback": 1}'])
def test_nothing_waits(told: str | None) -> None:
    assert approval.waiting(told) is None


def test_a_draft_in_plain_text() -> None:
    found = approval.waiting(json.dumps("Requesting human feedback. Iteration 1.\nThe draft."))
    assert found
    assert (found.draft, found.attempt) == ("The draft.", None)
    assert found.decision(True, "") == {"approved": True, "feedback": ""}


def test_a_tool_call_that_waits_for_approval() -> None:
    found = approval.waiting(status(approval.MARK, call="abc", draft={"title": "reserve_table", "content": "{}"}))
    assert found
    assert (found.what, found.title) == ("call", "reserve_table")
    decision = found.decision(True, "")
    assert decision == {"approved": True, "feedback": "", "call": "abc", "decision_id": decision["decision_id"]}


def test_what_became_of_a_decision() -> None:
    assert approval.outcome(status("Writing draft 2", counted=["mine"]), "mine") == "The decision counts."
    late = status("Writing draft 2", counted=["theirs"], last_decision={"decision_id": "mine", "ignored": "Too late."})
    assert approval.outcome(late, "mine") == "The decision does not count. Too late."
    assert approval.outcome(late, "another") is None
    assert approval.outcome('"Published"', "mine") is None


# A task hub's lists --------------------------------------------------------------------------------------------------


@pytest.fixture
def client(scheduler: str, hub: str) -> Iterator[Any]:
    """A client, and a worker whose only orchestration waits for an event."""

    def patient(context: OrchestrationContext, _: Any) -> Any:
        context.set_custom_status("waits")
        yield context.wait_for_external_event("go")

    where: dict[str, Any] = {"taskhub": hub, "token_credential": None, "secure_channel": False}
    worker = DurableTaskSchedulerWorker(host_address=scheduler, **where)
    worker.add_orchestrator(patient)
    with worker, DurableTaskSchedulerClient(host_address=scheduler, **where) as connected:
        worker.start()
        yield connected


@pytest.fixture
def listed(scheduler: str, hub: str) -> Callable[[], dict[str, tuple[str, str]]]:
    """The hub's list after the dashboard has refreshed it: status and custom status by id."""
    seen = Hub(scheduler, hub)

    def look() -> dict[str, tuple[str, str]]:
        seen.refresh()
        return {row.id: (row.status, row.custom_status) for row in seen.orchestrations}

    return look


@pytest.mark.long
def test_the_list_follows_what_starts_ends_and_goes(
    client: Any, listed: Callable[[], dict[str, tuple[str, str]]]
) -> None:
    assert listed() == {}
    first, second = (client.schedule_new_orchestration("patient", instance_id=name) for name in ("first", "second"))
    eventually(lambda: listed() == dict.fromkeys([second, first], ("RUNNING", "waits")), "both waiting")
    assert list(listed()) == [second, first]  # newest first
    client.raise_orchestration_event(first, "go")
    eventually(lambda: listed()[first][0] == "COMPLETED", "the end of the first")
    assert listed()[second][0] == "RUNNING"
    client.purge_orchestration(first)
    eventually(lambda: list(listed()) == [second], "the first to go")
    client.terminate_orchestration(second)
    eventually(lambda: listed()[second][0] == "TERMINATED", "the end of the second")
    client.restart_orchestration(second)
    eventually(lambda: listed()[second][0] == "RUNNING", "the second again")


def test_a_scheduler_out_of_reach_is_named() -> None:
    with pytest.raises(SchedulerProblem, match=r"The scheduler at http://127\.0\.0\.1:9 does not answer"):
        Hub("http://127.0.0.1:9", "any").refresh()
