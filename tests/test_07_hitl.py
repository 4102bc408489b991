"""Sample 07: a person decides on drafts; which decision counts, for which draft, and what survives the wait."""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Process, Sample, Start, eventually
from durabletask.client import EntityQuery, OrchestrationStatus
from durabletask.task import CompletableTask
from orchestration_double import ACTIVITY, AGENT, TIMER, OrchestrationDouble
from orchestrations import assert_fails, instance_of, scheduler_client, state_of
from scripted_model import ScriptedModel

NAME = "content_generation_hitl_orchestration"
EVENT = "HumanApproval"
REQUEST = {"topic": "tea", "max_review_attempts": 3, "approval_timeout_seconds": 300}
Modules = Callable[[str, str], ModuleType]


def review_in(custom_status: Any) -> dict[str, Any]:
    """The JSON below the custom status's first line."""
    return json.loads(custom_status.partition("\n")[2])


def draft(number: int = 1) -> str:
    return json.dumps({"title": f"Title {number}", "content": f"Content {number}"})


# The pattern, without a server ------------------------------------------------------------------------------------


class ReviewDouble(OrchestrationDouble):
    """Keeps events that nobody waits for, as the scheduler does; its clock moves on with every event."""

    def __init__(self, orchestrator: Callable[..., Any], input: Any) -> None:
        self._in_line: list[Any] = []
        super().__init__(orchestrator, input)

    def wait_for_external_event(self, name: str, **options: Any) -> CompletableTask[Any]:
        task = super().wait_for_external_event(name, **options)
        if self._in_line:
            task.complete(self._in_line.pop(0))
        return task

    def send(self, payload: Any, later: float = 1.0) -> None:
        """A decision arrives, so many seconds later; 0: in the same turn."""
        self.current_utc_datetime += timedelta(seconds=later)
        if any(call.kind == "event" for call in self.waiting):
            self.raise_event(EVENT, payload)
        else:
            self._in_line.append(payload)

    def answer(self, text: str, agent: str | None = None) -> None:
        self.current_utc_datetime += timedelta(seconds=1)
        super().answer(text, agent)

    @property
    def review(self) -> dict[str, Any]:
        """What the custom status says below its first line."""
        return review_in(self.custom_status)

    @property
    def ignored(self) -> str:
        """Why the last decision was ignored."""
        assert self.review["last_decision"]["ignored"], "it was not"
        assert not self.done
        return self.review["last_decision"]["ignored"]


@pytest.fixture
def orchestrator(modules: Modules) -> Callable[..., Any]:
    return modules("07", "orchestration").content_generation_hitl_orchestration


@pytest.fixture
def shown(orchestrator: Callable[..., Any]) -> ReviewDouble:
    """An orchestration whose first draft waits for a decision."""
    double = ReviewDouble(orchestrator, REQUEST)
    double.answer(draft(1))
    return double


def test_a_draft_is_shown_in_the_custom_status(shown: ReviewDouble) -> None:
    assert shown.custom_status.startswith("Requesting human feedback on draft 1 of 3\n")
    assert shown.review == {
        "attempt": 1,
        "of": 3,
        "since": "2030-01-01T00:00:01Z",
        "deadline": "2030-01-01T00:05:01Z",
        "draft": {"title": "Title 1", "content": "Content 1"},
        "last_decision": None,
        "counted": [],
    }
    assert shown.expect(TIMER).input == 300
    assert "draft 1 of 3" in shown.expect(ACTIVITY, "notify_user_for_approval").input


def test_approval_publishes(shown: ReviewDouble) -> None:
    shown.send({"approved": True, "feedback": "", "attempt": 1, "decision_id": "a"})
    assert shown.expect(ACTIVITY, "publish_content").input == json.loads(draft(1))
    assert shown.review["counted"] == ["a"]
    shown.finish_activity("/published/x.md", "publish_content")
    assert shown.output == {"title": "Title 1", "content": "Content 1"}
    assert shown.custom_status.startswith("Published as /published/x.md\n")


def test_nobody_waits_for_the_notification(shown: ReviewDouble) -> None:
    notice = shown.expect(ACTIVITY, "notify_user_for_approval")
    shown.break_call(notice, OSError("the mail server is down"))
    assert not shown.done
    shown.send("yes")
    shown.finish_activity("x", "publish_content")
    assert shown.output


def test_rejection_takes_the_feedback_into_the_next_draft(shown: ReviewDouble) -> None:
    shown.send({"approved": False, "feedback": "Mention Assam.", "attempt": 1, "decision_id": "a"})
    assert shown.custom_status.startswith("Writing draft 2 of 3\n")
    prompt = shown.expect(AGENT, "WriterAgent").input
    assert "Mention Assam." in prompt
    assert "Content 1" in prompt
    shown.answer(draft(2))
    assert shown.review["attempt"] == 2
    assert shown.review["last_decision"]["decision_id"] == "a"
    shown.send("approve")
    assert shown.review["counted"] == ["a", None]
    shown.finish_activity("x", "publish_content")
    assert shown.output["title"] == "Title 2"


def test_a_rejection_without_feedback_says_so_to_the_agent(shown: ReviewDouble) -> None:
    shown.send({"approved": False, "feedback": None})
    assert "No specific feedback" in shown.expect(AGENT).input


def test_attempts_used_up(shown: ReviewDouble) -> None:
    for number in (2, 3):
        shown.send("no")
        shown.answer(draft(number))
    shown.send("no")
    assert "none of the 3 drafts was approved" in str(shown.failure)
    assert shown.custom_status.startswith("Not approved\n")


def test_the_time_runs_out(shown: ReviewDouble) -> None:
    shown.fire_timer()
    assert isinstance(shown.failure, TimeoutError)
    assert "draft 1 of 3 timed out after 300 seconds" in str(shown.failure)
    assert not [call for call in shown.calls if call.name == "publish_content"]


def test_each_draft_has_its_own_time(shown: ReviewDouble) -> None:
    first = shown.expect(TIMER)
    shown.send("reject")
    shown.answer(draft(2))
    shown.end(first, None)
    assert not shown.done
    shown.fire_timer()
    assert "draft 2 of 3 timed out" in str(shown.failure)


def test_a_decision_before_the_draft_is_ignored(orchestrator: Callable[..., Any]) -> None:
    double = ReviewDouble(orchestrator, REQUEST)
    double.send({"approved": True, "feedback": ""})
    double.send("yes")
    double.answer(draft(1))
    assert "before draft 1 was shown" in double.ignored
    double.send("yes")
    double.finish_activity("x", "publish_content")
    assert double.output


def test_a_decision_in_the_turn_that_shows_the_draft_is_ignored(shown: ReviewDouble) -> None:
    shown.send("yes", later=0)
    assert "before draft 1 was shown" in shown.ignored


def test_a_second_decision_does_not_hit_the_next_draft(shown: ReviewDouble) -> None:
    shown.send({"approved": False, "feedback": "Shorter.", "attempt": 1, "decision_id": "first"})
    shown.send({"approved": True, "feedback": "", "attempt": 1, "decision_id": "second"})
    shown.answer(draft(2))
    assert "for draft 1" in shown.ignored
    assert shown.review["last_decision"]["decision_id"] == "second"
    assert shown.review["counted"] == ["first"]


def test_a_second_decision_without_a_number_does_not_hit_the_next_draft(shown: ReviewDouble) -> None:
    shown.send("reject")
    shown.send("yes")
    shown.answer(draft(2))
    assert "before draft 2 was shown" in shown.ignored


@pytest.mark.parametrize("attempt", [0, 2, -1])
def test_a_decision_on_another_draft_is_ignored(attempt: int, shown: ReviewDouble) -> None:
    shown.send({"approved": True, "attempt": attempt, "decision_id": "x"})
    assert f"for draft {attempt}" in shown.ignored
    assert shown.review["last_decision"]["decision_id"] == "x"


MALFORMED = [
    None,
    True,
    1,
    [],
    {},
    "",
    "maybe",
    "not yes",
    "yesterday",
    "nothing",
    "yes, but shorter",
    "{",
    "{}",
    '{"approved": "perhaps"}',
    {"approved": "yes"},
    {"approved": None},
    {"approved": 1},
    {"feedback": "good"},
    {"approved": True, "attempt": "one"},
    {"approved": True, "attempt": 1.5},
    {"approved": False, "feedback": ["a"]},
    {"approved": False, "feedback": "x" * 20_001},
    {"approved": True, "decision_id": "x" * 101},
]


@pytest.mark.parametrize("payload", MALFORMED, ids=lambda payload: repr(payload)[:40])
def test_anything_else_is_noted_and_the_wait_goes_on(payload: Any, shown: ReviewDouble) -> None:
    deadline = shown.review["deadline"]
    shown.send(payload)
    assert "not a decision" in shown.ignored
    assert len(shown.custom_status) < 2000
    assert shown.custom_status.startswith("Requesting human feedback")
    assert shown.review["deadline"] == deadline
    assert len([call for call in shown.calls if call.kind == TIMER]) == 1
    shown.fire_timer()
    assert "timed out" in str(shown.failure)


@pytest.mark.parametrize(
    ("payload", "approved", "feedback"),
    [
        ("yes", True, None),
        (" Yes! ", True, None),
        ("approve", True, None),
        ("Approved by Ada", True, None),
        ("no", False, ""),
        ("No.", False, ""),
        ("reject", False, ""),
        ("Rejected: too long", False, "too long"),
        ("reject - mention\nAssam", False, "mention\nAssam"),
        ({"approved": True, "feedback": ""}, True, ""),
        ({"approved": False, "feedback": " Shorter. "}, False, "Shorter."),
        ('{"approved": false, "feedback": "Shorter.", "attempt": 1}', False, "Shorter."),
        ({"approved": True, "reviewer": "Ada"}, True, None),
    ],
)
def test_the_forms_of_a_decision(payload: Any, approved: bool, feedback: str | None, modules: Modules) -> None:
    decision = modules("07", "models").read_decision(payload)
    assert (decision.approved, decision.feedback) == (approved, feedback)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"topic": ""}, "topic"),
        ({"topic": None}, "topic"),
        ({"topic": "x" * 1001}, "topic"),
        ({"max_review_attempts": 0}, "max_review_attempts"),
        ({"max_review_attempts": "many"}, "max_review_attempts"),
        ({"approval_timeout_seconds": 0}, "approval_timeout_seconds"),
        ({"approval_timeout_seconds": -1}, "approval_timeout_seconds"),
        ({"approval_timeout_seconds": float("inf")}, "approval_timeout_seconds"),
        ({"approval_timeout_seconds": float("nan")}, "approval_timeout_seconds"),
    ],
)
def test_wrong_input_is_named(wrong: dict[str, Any], named: str, orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, {**REQUEST, **wrong})
    assert named in str(double.failure)
    assert not double.calls


def test_the_topic_is_all_it_needs(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, {"topic": "tea"})
    assert "about" in double.expect(AGENT).input
    double.answer(draft())
    assert review_in(double.custom_status)["of"] == 3
    assert double.expect(TIMER).input == 300


def test_a_fraction_of_a_second_is_a_time(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, {"topic": "tea", "approval_timeout_seconds": 0.5})
    double.answer(draft())
    double.fire_timer()
    assert "timed out after 0.5 seconds" in str(double.failure)


def test_a_long_draft_is_shortened_in_the_custom_status_only(shown: ReviewDouble) -> None:
    shown.send("no")
    long = {"title": "T" * 500, "content": "é" * 30_000}
    shown.answer(json.dumps(long))
    content = shown.review["draft"]["content"]
    assert content.startswith("é" * 20_000)
    assert "10,000 more characters" in content
    assert len(shown.custom_status) < 22_000
    shown.send("yes")
    assert shown.expect(ACTIVITY, "publish_content").input == long


@pytest.mark.parametrize("answer", ["I cannot help with that.", '{"title": "x"}', '{"title": " ", "content": "x"}', ""])
def test_an_answer_that_is_no_draft_is_asked_for_again_and_then_fails(
    answer: str, orchestrator: Callable[..., Any]
) -> None:
    double = OrchestrationDouble(orchestrator, REQUEST)
    double.answer(answer)
    while not double.done:
        double.fire_timer()
        double.answer(answer)
    assert "WriterAgent" in str(double.failure)
    assert len([call for call in double.calls if call.kind == AGENT]) > 1


# End to end -------------------------------------------------------------------------------------------------------


@pytest.fixture
def articles(sample: Callable[[str], Sample], tmp_path: Path) -> Sample:
    """The sample; what it publishes goes into the test's own folder."""
    articles = sample("07")
    articles.settings["CONTENT_DIRECTORY"] = str(tmp_path)
    return articles


def begin(articles: Sample, **request: Any) -> str:
    """Start an orchestration; returns its instance id."""
    with scheduler_client(articles) as client:
        return client.schedule_new_orchestration(NAME, input={**REQUEST, **request})


def raise_event(articles: Sample, instance: str, payload: Any) -> None:
    with scheduler_client(articles) as client:
        client.raise_orchestration_event(instance, EVENT, data=payload)


def wait_for_draft(articles: Sample, instance: str, number: int = 1) -> dict[str, Any]:
    """The review in the custom status, once this draft waits for a decision."""

    def look() -> dict[str, Any] | None:
        state = state_of(articles, instance)
        status = state.get_custom_status() or ""
        assert state.runtime_status in (OrchestrationStatus.PENDING, OrchestrationStatus.RUNNING), state
        waits = status.startswith(f"Requesting human feedback on draft {number} ")
        return review_in(status) if waits else None

    try:
        return eventually(look, f"draft {number}", patience=30)
    except AssertionError as error:
        with scheduler_client(articles) as client:
            history = "\n".join(map(str, client.get_orchestration_history(instance)))
        raise AssertionError(f"{error}\n{state_of(articles, instance)}\n{history}") from None


def wait_for_end(articles: Sample, instance: str) -> Any:
    """The orchestration's state, once it has ended."""
    with scheduler_client(articles) as client:
        return client.wait_for_orchestration_completion(instance, timeout=60)


def failure_of(articles: Sample, instance: str) -> str:
    state = wait_for_end(articles, instance)
    assert state.runtime_status is OrchestrationStatus.FAILED, state
    return state.failure_details.message


def published(tmp_path: Path) -> list[str]:
    """The names of all files, finished or not, that were published."""
    return sorted(path.name for path in (tmp_path / "published").glob("*"))


def run_review(articles: Sample, *arguments: str) -> Process:
    return articles.run_client(*arguments, program="review.py")


def test_without_a_terminal_the_client_shows_a_whole_review(
    articles: Sample, model: ScriptedModel, tmp_path: Path
) -> None:
    worker = articles.start_worker()
    client = articles.run_client("tea")
    assert client.wait() == 0, client.errors
    assert client.output.index("Draft 1 of 3") < client.output.index("Make it shorter") < client.output.index("Draft 2")
    assert "Approved." in client.output
    assert len(model.requests) == 2
    instance = instance_of(client)
    (name,) = published(tmp_path)
    assert name == f"{instance}.md"
    text = (tmp_path / "published" / name).read_text()
    assert text.startswith("# Tea")
    assert text.strip() in client.output
    output = state_of(articles, instance).get_output()
    assert set(output) == {"title", "content"}
    assert text == f"# {output['title']}\n\n{output['content']}\n"
    assert f"python review.py show {instance}" in worker.output
    worker.stop()
    assert worker.errors == ""


def test_at_a_terminal_the_person_decides(articles: Sample, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("there are no pseudo-terminals")
    articles.start_worker()
    with Terminal(articles, "client.py") as terminal:
        terminal.say_at("What shall the article be about?", "green tea")
        terminal.say_at("Publish it?", "Please mention Assam.")
        terminal.say_at("Draft 2 of 3[^$]*Publish it?", "yes")
        terminal.wait_for("Published as")
        assert terminal.code() == 0
        assert "Assam" in terminal.text.partition("Draft 2 of 3")[2]
    assert len(published(tmp_path)) == 1


class Terminal:
    """A program at a terminal, with a person who types."""

    def __init__(self, sample: Sample, *command: str) -> None:
        import pty  # not on Windows

        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=sample.folder,
            env=sample.environment(),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 4096)
            except OSError:  # the other side is closed
                return
            if not data:
                return
            self.text += data.decode(errors="replace")

    def wait_for(self, pattern: str) -> None:
        eventually(lambda: re.search(pattern, self.text), f"{pattern!r} in {self.text}", patience=20)

    def say_at(self, pattern: str, line: str) -> None:
        """Type a line once the program has printed this."""
        self.wait_for(pattern)
        os.write(self._master, f"{line}\n".encode())

    def code(self) -> int:
        return self._process.wait(20)


def test_the_long_running_way(articles: Sample, tmp_path: Path) -> None:
    articles.start_worker()
    client = articles.run_client("tea", "--no-wait")
    assert client.wait() == 0
    instance = client.output.strip()
    assert f"python review.py show {instance}" in client.errors
    wait_for_draft(articles, instance)

    listed = run_review(articles, "list")
    assert listed.wait() == 0, listed.errors
    assert instance in listed.output
    assert "waiting since" in listed.output
    assert "until" in listed.output

    shown = run_review(articles, "show", instance)
    assert "Draft 1 of 3" in shown.output
    assert "Tea" in shown.output
    assert f"python review.py approve {instance} --draft 1" in shown.output

    rejected = run_review(articles, "reject", instance, "--feedback", "Mention Assam.", "--draft", "1")
    assert rejected.wait() == 0, rejected.errors
    assert rejected.output.startswith("Rejected: draft 1 of 3")
    review = wait_for_draft(articles, instance, 2)
    assert "Assam" in review["draft"]["content"]
    assert run_review(articles, "approve", instance).output.startswith("Approved: draft 2 of 3")

    back = articles.run_client("--instance", instance)
    assert back.wait() == 0, back.errors
    assert "Assam" in back.output
    assert published(tmp_path) == [f"{instance}.md"]
    assert "Nothing waits" in run_review(articles, "list").output
    over = run_review(articles, "show", instance)
    assert over.wait() == 0
    assert "Completed: Published as" in over.output
    assert_fails(run_review(articles, "approve", instance), 1, "No draft waits", "Published as")


def test_whoever_comes_back_without_a_terminal_decides_nothing(articles: Sample) -> None:
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    back = articles.start_client("--instance", instance)
    back.wait_for("It waits for a decision")
    assert run_review(articles, "approve", instance).wait() == 0
    assert back.wait() == 0, back.errors


def test_a_decision_on_a_draft_that_was_revised_does_not_count(articles: Sample) -> None:
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    assert run_review(articles, "reject", instance, "--feedback", "Shorter.").wait() == 0
    wait_for_draft(articles, instance, 2)
    assert_fails(run_review(articles, "approve", instance, "--draft", "1"), 1, "does not count", "came first")
    assert wait_for_draft(articles, instance, 2)["counted"] != []


def test_two_decide_at_once(articles: Sample, modules: Modules, tmp_path: Path) -> None:
    review = modules("07", "review")
    articles.start_worker()
    for _ in range(5):
        instance = begin(articles)
        wait_for_draft(articles, instance)
        ready = threading.Barrier(2)

        def decide(approved: bool, instance: str = instance, ready: threading.Barrier = ready) -> str:
            with scheduler_client(articles) as client:
                ready.wait()
                try:
                    review.decide(client, instance, 1, approved=approved, feedback="" if approved else "Shorter.")
                except review.NotCounted as reason:
                    return str(reason)
            return "counted"

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(decide, [True, False]))
        assert outcomes.count("counted") == 1, outcomes
        if outcomes[0] == "counted":
            assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED
        else:
            assert wait_for_draft(articles, instance, 2)


def test_reject_until_exhausted(articles: Sample, tmp_path: Path) -> None:
    articles.start_worker()
    instance = begin(articles, max_review_attempts=2)
    for number in (1, 2):
        wait_for_draft(articles, instance, number)
        assert run_review(articles, "reject", instance, "--feedback", "No.").wait() == 0
    assert "none of the 2 drafts was approved" in failure_of(articles, instance)
    back = articles.run_client("--instance", instance)
    assert_fails(back, 1, "none of the 2 drafts was approved")
    assert f"{instance}.md" not in published(tmp_path)


def test_timeout(articles: Sample, tmp_path: Path) -> None:
    articles.start_worker()
    instance = begin(articles, approval_timeout_seconds=1)
    client = articles.run_client("--instance", instance)
    assert_fails(client, 1, "draft 1 of 3 timed out after 1 seconds")
    late = run_review(articles, "approve", instance)
    assert_fails(late, 1, "No draft waits", "timed out")
    raise_event(articles, instance, "yes")
    assert state_of(articles, instance).runtime_status is OrchestrationStatus.FAILED
    assert published(tmp_path) == []


def test_an_early_decision_is_ignored(articles: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    articles.start_worker()
    instance = begin(articles)
    eventually(lambda: model.requests, "the draft is being written")
    raise_event(articles, instance, {"approved": True, "feedback": ""})
    raise_event(articles, instance, "yes")
    model.held.set()
    review = wait_for_draft(articles, instance)
    assert "before draft 1 was shown" in review["last_decision"]["ignored"]
    raise_event(articles, instance, {"approved": True, "feedback": ""})
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED


AGENT_ALONE = """
import os, sys
sys.path.insert(0, os.getcwd())
from agent_framework_durabletask import DurableAIAgentWorker
import support, worker

def main():
    alone = support.scheduler_worker()
    DurableAIAgentWorker(alone).add_agent(worker.create_writer())
    support.serve(alone)

support.run(main)
"""


def test_a_decision_that_stands_in_line_behind_the_draft_is_ignored(
    articles: Sample, model: ScriptedModel, start: Start
) -> None:
    """Both arrive while no worker runs the orchestration, and are handed over in one turn: nobody saw the draft."""
    model.held = threading.Event()
    first = articles.start_worker()
    instance = begin(articles)
    eventually(lambda: model.requests, "the draft is being written")
    first.kill()
    model.held.set()
    start(sys.executable, "-c", AGENT_ALONE, cwd=articles.folder, env=articles.environment())
    eventually(lambda: has_answered(articles), "the draft is written")
    raise_event(articles, instance, "yes")
    articles.start_worker()
    wait_for_draft(articles, instance)
    eventually(lambda: wait_for_draft(articles, instance)["last_decision"], "the decision is noted")
    assert "before draft 1 was shown" in wait_for_draft(articles, instance)["last_decision"]["ignored"]
    with scheduler_client(articles) as client:
        kinds = [type(event).__name__ for event in client.get_orchestration_history(instance)]
    together = kinds[kinds.index("EntityOperationCompletedEvent") :]
    assert together[1] == "EventRaisedEvent", kinds


def has_answered(articles: Sample) -> bool:
    """Whether an agent has answered in any conversation."""
    with scheduler_client(articles) as client:
        entities = client.get_all_entities(EntityQuery(include_state=True))
    return any('"$type": "response"' in str(entity.get_state()) for entity in entities)


def test_a_duplicate_does_not_hit_the_next_draft(articles: Sample, model: ScriptedModel) -> None:
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    model.held = threading.Event()
    for _ in range(2):
        raise_event(articles, instance, {"approved": False, "feedback": "Shorter."})
    eventually(lambda: len(model.requests) == 2, "the second draft is being written")
    raise_event(articles, instance, {"approved": False, "feedback": "Shorter."})
    model.held.set()
    review = wait_for_draft(articles, instance, 2)
    assert "before draft 2 was shown" in review["last_decision"]["ignored"]
    assert review["counted"] == [None]
    assert len(model.requests) == 2


def test_malformed_and_misnumbered_decisions_are_noted(articles: Sample) -> None:
    articles.start_worker()
    instance = begin(articles)
    deadline = wait_for_draft(articles, instance)["deadline"]
    for payload, why in (("maybe", "not a decision"), ({"approved": True, "attempt": 7}, "for draft 7")):
        raise_event(articles, instance, payload)

        def noted(why: str = why) -> bool:
            return why in str((wait_for_draft(articles, instance)["last_decision"] or {}).get("ignored"))

        eventually(noted, why)
    assert wait_for_draft(articles, instance)["deadline"] == deadline
    assert "A decision was ignored" in run_review(articles, "show", instance).output
    raise_event(articles, instance, '{"approved": true, "feedback": ""}')
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED


# What survives ----------------------------------------------------------------------------------------------------


def test_no_worker_while_the_decision_arrives(articles: Sample, model: ScriptedModel, tmp_path: Path) -> None:
    worker = articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    worker.kill()
    unconfirmed = run_review(articles, "approve", instance, "--timeout", "0.3")
    assert_fails(unconfirmed, 1, "no worker has taken it up", "python worker.py")
    articles.start_worker()
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED
    assert published(tmp_path) == [f"{instance}.md"]
    assert len(model.requests) == 1


def test_no_worker_while_the_time_runs_out(articles: Sample) -> None:
    worker = articles.start_worker()
    instance = begin(articles, approval_timeout_seconds=0.5)
    wait_for_draft(articles, instance)
    worker.kill()
    time.sleep(0.6)  # the deadline passes
    raise_event(articles, instance, "yes")  # too late, though no worker has noted the deadline yet
    assert "over, as a worker will note" in run_review(articles, "list").output
    articles.start_worker()
    assert "timed out after 0.5 seconds" in failure_of(articles, instance)


def test_a_decision_before_the_deadline_counts_though_the_worker_comes_back_after_it(articles: Sample) -> None:
    worker = articles.start_worker()
    instance = begin(articles, approval_timeout_seconds=2)
    deadline = time.monotonic() + 2
    wait_for_draft(articles, instance)
    worker.kill()
    raise_event(articles, instance, "yes")
    assert time.monotonic() < deadline, "this machine is too slow for this test"
    time.sleep(deadline - time.monotonic() + 0.3)
    articles.start_worker()
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED


def test_the_timer_of_a_decided_draft_does_not_matter(articles: Sample) -> None:
    worker = articles.start_worker()
    instance = begin(articles, approval_timeout_seconds=1)
    wait_for_draft(articles, instance)
    raise_event(articles, instance, "reject")
    second = wait_for_draft(articles, instance, 2)
    time.sleep(0.9)  # the first draft's timer fires, the second's a little later
    assert second
    assert "draft 2 of 3 timed out" in failure_of(articles, instance)
    worker.stop()
    assert worker.errors == ""


def test_the_client_goes_and_another_process_decides(articles: Sample, tmp_path: Path) -> None:
    articles.start_worker()
    instance = begin(articles)
    client = articles.start_client("--instance", instance)
    client.wait_for("It waits for a decision")
    client.kill()
    assert run_review(articles, "approve", instance).wait() == 0
    wait_for_end(articles, instance)
    assert published(tmp_path) == [f"{instance}.md"]


def test_a_worker_killed_while_it_writes_the_second_draft(articles: Sample, model: ScriptedModel) -> None:
    first = articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    model.held = threading.Event()
    raise_event(articles, instance, {"approved": False, "feedback": "Mention Assam.", "attempt": 1})
    eventually(lambda: len(model.requests) == 2, "the second draft is being written")
    first.kill()
    articles.start_worker()
    eventually(lambda: len(model.requests) == 3, "it is asked for again")
    model.held.set()
    assert "Assam" in wait_for_draft(articles, instance, 2)["draft"]["content"]
    raise_event(articles, instance, "yes")
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED
    assert len(model.requests) == 3  # the first draft is not written again


DYING_WORKER = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
import activities, support, worker

def publish_content(context, data):
    activities.publish_content(context, data)
    os.kill(os.getpid(), signal.SIGKILL)

worker.publish_content = publish_content
support.run(worker.main)
"""


def test_a_worker_that_dies_between_publishing_and_saying_so(
    articles: Sample, model: ScriptedModel, start: Start, tmp_path: Path
) -> None:
    dying = start(sys.executable, "-c", DYING_WORKER, cwd=articles.folder, env=articles.environment())
    dying.wait_for("Worker ready")
    instance = begin(articles)
    wait_for_draft(articles, instance)
    raise_event(articles, instance, "yes")
    dying.wait()
    assert published(tmp_path) == [f"{instance}.md"]
    articles.start_worker()
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED
    assert published(tmp_path) == [f"{instance}.md"]
    assert len(model.requests) == 1


def test_fifty_wait_at_once_and_are_decided_in_random_order(articles: Sample, tmp_path: Path) -> None:
    articles.start_worker()
    instances = [begin(articles, topic=f"topic {number}") for number in range(50)]
    for instance in instances:
        wait_for_draft(articles, instance)
    assert run_review(articles, "list").output.count("draft 1 of 3") == 50
    approved = random.Random(7).sample(instances, 50)  # noqa: S311 (an order, not a secret)
    for number, instance in enumerate(approved):
        raise_event(articles, instance, {"approved": number % 5 != 0, "feedback": "Shorter.", "attempt": 1})
    for number, instance in enumerate(approved):
        if number % 5 == 0:
            wait_for_draft(articles, instance, 2)
            raise_event(articles, instance, {"approved": True, "attempt": 2})
    for number, instance in enumerate(instances):
        state = wait_for_end(articles, instance)
        assert state.runtime_status is OrchestrationStatus.COMPLETED
        assert f"opic {number}" in state.get_output()["title"]
    assert published(tmp_path) == sorted(f"{instance}.md" for instance in instances)


def test_publishing_twice_writes_once(modules: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTENT_DIRECTORY", str(tmp_path))
    activities = modules("07", "activities")
    for title in ("First", "Second"):
        path = activities.publish_content(ActivityDouble("instance-1"), {"title": title, "content": "Text"})
        assert Path(path).read_text() == "# First\n\nText\n"
    assert published(tmp_path) == ["instance-1.md"]


class ActivityDouble:
    def __init__(self, instance_id: str) -> None:
        self.orchestration_id = instance_id


@pytest.mark.parametrize("instance", ["../escape", "/etc/passwd", "..", "", "a/b", "CON", "x" * 300, "é", "A", "a"])
def test_no_instance_id_leaves_the_folder(
    instance: str, modules: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTENT_DIRECTORY", str(tmp_path))
    activities = modules("07", "activities")
    path = Path(activities.publish_content(ActivityDouble(instance), {"title": "T", "content": "C"}))
    assert path.parent == tmp_path.resolve() / "published"
    assert path.exists()


def test_a_publication_that_fails_fails_the_orchestration(articles: Sample, tmp_path: Path) -> None:
    (tmp_path / "published").write_text("a file where the folder should be")
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    raise_event(articles, instance, "yes")
    assert_fails(articles.run_client("--instance", instance), 1, "published")


# What goes wrong --------------------------------------------------------------------------------------------------


def test_a_model_that_fails_for_good(articles: Sample, model: ScriptedModel) -> None:
    model.fail(401, "Access denied due to invalid subscription key")
    articles.start_worker()
    assert_fails(articles.run_client(), 1, "WriterAgent", "Access denied due to invalid subscription key")


@pytest.mark.parametrize(
    ("program", "arguments", "named"),
    [
        ("review.py", ["show", "nobody"], "nobody"),
        ("review.py", ["approve", "nobody"], "nobody"),
        ("review.py", ["reject", "nobody"], "--feedback"),
        ("review.py", ["reject", "nobody", "--feedback", " "], "--feedback"),
        ("review.py", ["approve", "nobody", "--draft", "0"], "--draft"),
        ("review.py", [], "command"),
        ("client.py", ["--instance", "nobody"], "nobody"),
        ("client.py", ["--instance", "nobody", "tea"], "--instance"),
        ("client.py", ["--attempts", "many"], "--attempts"),
    ],
)
def test_arguments_that_make_no_sense(program: str, arguments: list[str], named: str, articles: Sample) -> None:
    assert_fails(articles.run_client(*arguments, program=program), 2, named)


def test_input_that_the_orchestration_refuses(articles: Sample) -> None:
    articles.start_worker()
    assert_fails(articles.run_client("--attempts", "0"), 1, "max_review_attempts")
    assert_fails(articles.run_client("--review-timeout", "0"), 1, "approval_timeout_seconds")


def test_worker_and_client_in_one_process(articles: Sample) -> None:
    sample = articles.run_client("tea", program="sample.py")
    assert sample.wait() == 0, sample.errors
    assert "Published as" in sample.output


def test_the_folder_runs_alone(articles: Sample, start: Start, tmp_path: Path) -> None:
    """Copied out: what it publishes goes into the copy."""
    for file in articles.folder.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    del articles.settings["CONTENT_DIRECTORY"]
    environment = articles.environment(CONTENT_DIRECTORY="")
    start(sys.executable, "worker.py", cwd=tmp_path, env=environment).wait_for("Worker ready")
    client = start(sys.executable, "client.py", cwd=tmp_path, env=environment)
    assert client.popen.stdin
    client.popen.stdin.close()
    assert client.wait() == 0, client.errors
    assert len(published(tmp_path)) == 1
