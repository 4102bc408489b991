"""Sample 07: a person decides on drafts; which decision counts, for which draft, and what survives the wait."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
import pytest
from conftest import Process, Sample, Start, eventually
from durabletask.client import OrchestrationStatus
from google.protobuf.wrappers_pb2 import StringValue
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
    """Its clock advances with every answer and decision."""

    def send(self, payload: Any) -> None:
        """A decision arrives, a second later."""
        self.current_utc_datetime += timedelta(seconds=1)
        self.raise_event(EVENT, payload)

    def answer(self, text: str, agent: str | None = None) -> None:
        self.current_utc_datetime += timedelta(seconds=1)
        super().answer(text, agent)

    @property
    def review(self) -> dict[str, Any]:
        """What the custom status says below its first line."""
        return json.loads(self.shown)

    @property
    def ignored(self) -> str:
        """Why the last decision was ignored."""
        assert self.headline.startswith("Requesting human feedback"), self.headline
        assert self.review["last_decision"]["ignored"], "it was not"
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
        "deadline": "2030-01-01T00:05:01Z",
        "draft": {"title": "Title 1", "content": "Content 1"},
        "last_decision": None,
        "counted": [],
    }
    assert review_timers(shown) == [300]
    assert "draft 1 of 3" in shown.expect(ACTIVITY, "notify_user_for_approval").input


def test_approval_publishes(shown: ReviewDouble) -> None:
    shown.send({"approved": True, "feedback": "", "attempt": 1, "decision_id": "a"})
    assert shown.expect(ACTIVITY, "publish_content").input.model_dump() == json.loads(draft(1))
    assert shown.review["counted"] == ["a"]
    shown.finish_activity("/published/x.md", "publish_content")
    assert shown.output.model_dump() == {"title": "Title 1", "content": "Content 1"}
    assert shown.custom_status.startswith("Published as /published/x.md\n")


def review_timers(double: OrchestrationDouble) -> list[float]:
    """The seconds of the timers that it has set, without those that watch over a call of the agent."""
    return [call.input for call in double.calls if call.kind == TIMER and call.input != 600]


def test_nobody_waits_for_the_notification(shown: ReviewDouble) -> None:
    notice = shown.expect(ACTIVITY, "notify_user_for_approval")
    shown.break_call(notice, OSError("the mail server is down"))
    assert not shown.done
    shown.send("yes")
    shown.finish_activity("x", "publish_content")
    assert shown.output


def test_rejection_takes_the_feedback_into_the_next_draft(shown: ReviewDouble) -> None:
    shown.send({"approved": False, "feedback": "Mention Assam.", "attempt": 1, "decision_id": "a"})
    assert shown.headline == "asking ContentWriterAgent"
    assert shown.review["last_decision"]["approved"] is False
    prompt = shown.expect(AGENT, "ContentWriterAgent").input
    assert "Mention Assam." in prompt
    assert "Content 1" in prompt
    shown.answer(draft(2))
    assert shown.review["attempt"] == 2
    assert shown.review["last_decision"]["decision_id"] == "a"
    shown.send("approve")
    assert shown.review["counted"] == ["a", None]
    shown.finish_activity("x", "publish_content")
    assert shown.output.title == "Title 2"


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
    shown.send("reject")
    shown.answer(draft(2))
    shown.fire_timer()  # the first draft's timer fires on the way
    assert len(review_timers(shown)) == 2
    assert "draft 2 of 3 timed out" in str(shown.failure)


def test_a_decision_without_a_number_counts_for_the_draft_that_waits_when_it_is_read(
    orchestrator: Callable[..., Any],
) -> None:
    double = ReviewDouble(orchestrator, REQUEST)
    double.send({"approved": False, "feedback": "Mention Assam."})  # while the first draft is being written
    double.answer(draft(1))
    assert "Mention Assam." in double.expect(AGENT).input
    assert double.review["counted"] == [None]


def test_a_second_decision_with_a_number_does_not_hit_the_next_draft(shown: ReviewDouble) -> None:
    shown.send({"approved": False, "feedback": "Shorter.", "attempt": 1, "decision_id": "first"})
    shown.send({"approved": True, "feedback": "", "attempt": 1, "decision_id": "second", "by": "Ada"})
    shown.answer(draft(2))
    assert "for draft 1" in shown.ignored
    assert shown.review["last_decision"] == {
        "approved": True,
        "attempt": 1,
        "decision_id": "second",
        "by": "Ada",
        "ignored": "It is for draft 1; draft 2 is waiting.",
    }
    assert shown.review["counted"] == ["first"]


@pytest.mark.parametrize("attempt", [2, 3, 100])
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
    "approved: false",
    "approve? no way",
    "approve not",
    "rejected: too long",
    "\ud83d",
    "x" * 900_000,
    "{",
    "{}",
    '{"approved": "perhaps"}',
    {"approved": "yes"},
    {"approved": None},
    {"approved": 1},
    {"feedback": "good"},
    {"approved": True, "attempt": "one"},
    {"approved": True, "attempt": 1.5},
    {"approved": True, "attempt": True},
    {"approved": True, "attempt": 0},
    {"approved": True, "attempt": -1},
    {"approved": True, "attempt": 10**2000},
    {"approved": True, "Attempt": 7},
    {"approved": True, "reviewer": "Ada"},
    {"approved": True, "x" * 900_000: 1},
    {"approved": True, **{f"key {number}": "x" for number in range(10_000)}},
    {"approved": True, "\ud83d": 1},
    {"approved": False, "feedback": "\ud83d"},
    {"approved": False, "feedback": "x" * 900_000},
    '{"approved": true, "Attempt": 7}',
    '{"approved": false, "feedback": "\\ud83d"}',
    "[" * 100_000,
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
    assert review_timers(shown) == [300]
    shown.custom_status.encode()  # it can be sent
    shown.fire_timer()
    assert "timed out" in str(shown.failure)


@pytest.mark.parametrize(
    ("payload", "approved", "feedback"),
    [
        ("yes", True, None),
        (" Yes! ", True, None),
        ("approve", True, None),
        ("Approved", True, None),
        ("no", False, None),
        ("No.", False, None),
        ("reject", False, None),
        ("Rejected", False, None),
        ({"approved": True, "feedback": ""}, True, ""),
        ({"approved": False, "feedback": " Shorter. "}, False, "Shorter."),
        ('{"approved": false, "feedback": "Shorter.", "attempt": 1}', False, "Shorter."),
        ({"approved": True, "by": "Ada"}, True, None),
    ],
)
def test_the_forms_of_a_decision(payload: Any, approved: bool, feedback: str | None, modules: Modules) -> None:
    decision = modules("07", "models").Decision.read(payload)
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
    assert review_timers(double) == [300]


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
    assert shown.expect(ACTIVITY, "publish_content").input.model_dump() == long


@pytest.mark.parametrize("answer", ["I cannot help with that.", '{"title": "x"}', '{"title": " ", "content": "x"}', ""])
def test_an_answer_that_is_no_draft_is_asked_for_again_and_then_fails(
    answer: str, orchestrator: Callable[..., Any]
) -> None:
    double = OrchestrationDouble(orchestrator, REQUEST)
    double.answer(answer)
    while not double.done:
        double.fire_timer()
        double.answer(answer)
    assert "ContentWriterAgent: " in str(double.failure)
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


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_at_a_terminal_the_person_decides(articles: Sample, tmp_path: Path) -> None:
    articles.start_worker()
    with Terminal(articles, "client.py", "green tea") as terminal:
        terminal.say_at("Publish it?", "no")
        terminal.say_at("What should the next draft do better?", "Please mention Assam.")
        terminal.say_at("Draft 2 of 3[^$]*Publish it?", "Yes please!")
        terminal.wait_for("Published as")
        assert terminal.code() == 0
        assert "Assam" in terminal.text.partition("Draft 2 of 3")[2]
    assert len(published(tmp_path)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(
    "words", ["approve", "yes please", "ok", "Okay.", "y", "publish", "LGTM", "looks good", "approved"]
)
def test_at_a_terminal_approving_words_approve(words: str, articles: Sample, model: ScriptedModel) -> None:
    articles.start_worker()
    with Terminal(articles, "client.py") as terminal:
        terminal.say_at("Publish it?", words)
        terminal.wait_for("Published as")
        assert terminal.code() == 0
    assert len(model.requests) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_at_a_terminal_anything_unclear_is_asked_again(articles: Sample, model: ScriptedModel) -> None:
    articles.start_worker()
    with Terminal(articles, "client.py", "--attempts", "2") as terminal:
        for number, unclear in enumerate(("approve? no way", "yes, but shorter", "maybe"), start=1):
            terminal.say_at(f"(Publish it[^$]*){{{number}}}", unclear)
            terminal.say_at(f"(Is that feedback[^$]*){{{number}}}", "no")
        terminal.say_at("(Publish it[^$]*){4}", "")
        terminal.say_at("(Publish it[^$]*){5}", "no")
        terminal.say_at("What should the next draft do better", "")  # back to the question
        assert len(model.requests) == 1
        terminal.say_at("(Publish it[^$]*){6}", "Please mention Assam.")
        terminal.say_at("(Is that feedback[^$]*){4}", "yes")
        terminal.say_at("Draft 2 of 2[^$]*Publish it", "yes")
        terminal.wait_for("Published as")
        assert terminal.code() == 0
        assert "Assam" in terminal.text.partition("Draft 2 of 2")[2]
    assert len(model.requests) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("question", ["Publish it", "What should the next draft do better", "Is that feedback"])
@pytest.mark.parametrize("key", ["\x04", "\x03"], ids=["Ctrl-D", "Ctrl-C"])
def test_who_leaves_the_terminal_leaves_the_draft_undecided(key: str, question: str, articles: Sample) -> None:
    articles.start_worker()
    instance = begin(articles)
    with Terminal(articles, "client.py", "--instance", instance) as terminal:
        if question != "Publish it":
            terminal.say_at("Publish it", "no" if question.startswith("What") else "hm")
        terminal.type_at(question, key)
        terminal.wait_for(f"stays undecided.*python client.py --instance {instance}")
        assert terminal.code() == 130
        assert terminal.text.count("To come back") == 1
        assert "Traceback" not in terminal.text
    assert wait_for_draft(articles, instance)["last_decision"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_what_a_model_or_a_reviewer_writes_does_not_steer_the_terminal(articles: Sample, model: ScriptedModel) -> None:
    model.say(json.dumps({"title": "Red\x1b[31m", "content": "Back\u202ewards"}))
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    raise_event(articles, instance, {"approved": True, "\x1b[2J": 1})
    eventually(lambda: wait_for_draft(articles, instance)["last_decision"], "it is ignored")
    shown = [run_review(articles, "list").output, run_review(articles, "show", instance).output]
    with Terminal(articles, "client.py", "--instance", instance) as terminal:
        terminal.say_at("Publish it", "yes")
        assert terminal.code() == 0
    for text in (*shown, terminal.text):
        assert "Red[31m" in text
        assert not re.search("[\x1b\u202e]", text.replace("\x1b[?2004", ""))  # readline's own


# In the new process: its standard input becomes the terminal that it belongs to, so that Ctrl-C reaches it. (Not by
# Popen's preexec_fn, which can hang in a process with threads.)
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A program at a terminal, with a person who types."""

    def __init__(self, sample: Sample, *command: str) -> None:
        import pty  # not on Windows

        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, sys.executable, *command],
            cwd=sample.folder,
            env=sample.environment(),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
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
        self.type_at(pattern, f"{line}\n")

    def type_at(self, pattern: str, keys: str) -> None:
        """Type these keys once the program has printed this."""
        self.wait_for(pattern)
        os.write(self._master, keys.encode())

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
    assert "waits until" in listed.output

    shown = run_review(articles, "show", instance)
    assert "Draft 1 of 3" in shown.output
    assert "Tea" in shown.output
    assert f"python review.py approve {instance} --draft 1" in shown.output

    rejected = run_review(
        articles, "reject", instance, "--feedback", "Mention Assam.", "--draft", "1", "--by", "Ada" * 50
    )
    assert rejected.wait() == 0, rejected.errors
    assert rejected.output.startswith("Rejected: draft 1 of 3")
    review = wait_for_draft(articles, instance, 2)
    assert "Assam" in review["draft"]["content"]
    assert review["last_decision"]["by"].startswith("AdaAda")
    assert "Draft 1 was rejected by Ada" in run_review(articles, "show", instance).output
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
    reviews, models = modules("07", "reviews"), modules("07", "models")
    articles.start_worker()
    for _ in range(5):
        instance = begin(articles)
        wait_for_draft(articles, instance)
        ready = threading.Barrier(2)

        def decide(approved: bool, instance: str = instance, ready: threading.Barrier = ready) -> str:
            with scheduler_client(articles) as client:
                ready.wait()
                try:
                    reviews.decide(client, instance, models.Decision(approved=approved, attempt=1))
                except reviews.NotCounted as reason:
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


def test_an_early_decision_counts_for_the_draft_that_waits_when_it_is_read(
    articles: Sample, model: ScriptedModel
) -> None:
    model.held = threading.Event()
    articles.start_worker()
    instance = begin(articles)
    eventually(lambda: model.requests, "the draft is being written")
    raise_event(articles, instance, {"approved": False, "feedback": "Mention Assam."})
    raise_event(articles, instance, {"approved": True, "attempt": 1})  # when this is read, draft 2 waits
    model.held.set()
    review = wait_for_draft(articles, instance, 2)
    assert "Assam" in review["draft"]["content"]
    eventually(lambda: "for draft 1" in last_ignored(articles, instance, 2), "the approval of draft 1 is ignored")
    raise_event(articles, instance, "yes")
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED


def last_ignored(articles: Sample, instance: str, number: int = 1) -> str:
    """Why the last decision was ignored, while this draft waits."""
    return str((wait_for_draft(articles, instance, number)["last_decision"] or {}).get("ignored"))


def test_a_duplicate_with_a_number_does_not_hit_the_next_draft(articles: Sample, model: ScriptedModel) -> None:
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    model.held = threading.Event()
    decision = {"approved": False, "feedback": "Shorter.", "attempt": 1}
    for _ in range(2):
        raise_event(articles, instance, decision)
    eventually(lambda: len(model.requests) == 2, "the second draft is being written")
    raise_event(articles, instance, decision)
    model.held.set()
    wait_for_draft(articles, instance, 2)
    eventually(lambda: "for draft 1" in last_ignored(articles, instance, 2), "the duplicates are ignored")
    assert wait_for_draft(articles, instance, 2)["counted"] == [None]
    assert len(model.requests) == 2


@pytest.mark.parametrize("together", [True, False])
def test_large_events_are_ignored(together: bool, articles: Sample, model: ScriptedModel) -> None:
    """Six of 900 kB: the scheduler takes three, and refuses what would make the history too large for a worker."""
    model.held = threading.Event() if together else None
    articles.start_worker()
    instance = begin(articles)
    eventually(lambda: model.requests, "the draft is being written")
    for number in range(6):
        with nullcontext() if number < 3 else pytest.raises(grpc.RpcError, match="history has"):
            raise_event(articles, instance, {"approved": True, str(number): "x" * 900_000})
    if model.held:
        model.held.set()
    eventually(lambda: "decision: 2: " in last_ignored(articles, instance), "all are ignored")
    assert len(state_of(articles, instance).get_custom_status()) < 3000
    raise_event(articles, instance, "yes")
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED


@pytest.mark.parametrize("data", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, "1" * 5000, "nothing", '"\\ud83d"'])
def test_an_event_that_python_cannot_read_is_ignored(data: str, articles: Sample) -> None:
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    with scheduler_client(articles) as client:
        client._stub.RaiseEvent(pb.RaiseEventRequest(instanceId=instance, name=EVENT, input=StringValue(value=data)))
    eventually(lambda: "not a decision" in last_ignored(articles, instance), "it is ignored")
    raise_event(articles, instance, "yes")
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED


def test_malformed_and_misnumbered_decisions_are_noted(articles: Sample) -> None:
    articles.start_worker()
    instance = begin(articles)
    deadline = wait_for_draft(articles, instance)["deadline"]
    for payload, why in (("maybe", "not a decision"), ({"approved": True, "attempt": 7}, "for draft 7")):
        raise_event(articles, instance, payload)
        eventually(lambda why=why: why in last_ignored(articles, instance), why)
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
    assert_fails(unconfirmed, 1, "no worker has read it", "python worker.py")
    articles.start_worker()
    assert wait_for_end(articles, instance).runtime_status is OrchestrationStatus.COMPLETED
    assert published(tmp_path) == [f"{instance}.md"]
    assert len(model.requests) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
def test_the_time_limit_of_a_decision_holds_while_the_scheduler_is_frozen(
    articles: Sample, start: Start, modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = start(sys.executable, "-m", "local_services.scheduler", "--port", "0", "--supervised")
    articles.settings["ENDPOINT"] = scheduler.wait_for(r"scheduler ready: (\S+)")[1]
    worker = articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    worker.kill()
    for name in ("ENDPOINT", "TASKHUB"):
        monkeypatch.setenv(name, articles.settings[name])
    reviews, models = modules("07", "reviews"), modules("07", "models")
    with modules("07", "hosting.scheduler").scheduler_client() as client:
        send = client.raise_orchestration_event

        def send_and_freeze(*arguments: Any, **options: Any) -> None:
            send(*arguments, **options)
            scheduler.signal(signal.SIGSTOP)

        monkeypatch.setattr(client, "raise_orchestration_event", send_and_freeze)
        began = time.monotonic()
        try:
            with pytest.raises((reviews.AgentError, grpc.RpcError)):
                reviews.decide(client, instance, models.Decision(approved=True, attempt=1), timeout=3)
            assert time.monotonic() - began < 9
        finally:
            scheduler.signal(signal.SIGCONT)


def test_no_worker_while_the_time_runs_out(articles: Sample) -> None:
    worker = articles.start_worker()
    instance = begin(articles, approval_timeout_seconds=0.5)
    wait_for_draft(articles, instance)
    worker.kill()
    time.sleep(0.6)  # the deadline passes
    raise_event(articles, instance, "yes")  # too late, though no worker has noted the deadline yet
    assert "over, as a worker will notice" in run_review(articles, "list").output
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
        path = activities.publish_content(ActivityDouble("instance-1"), activities.Draft(title=title, content="Text"))
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
    path = Path(activities.publish_content(ActivityDouble(instance), activities.Draft(title="T", content="C")))
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


def test_a_request_that_the_model_rejects(articles: Sample, model: ScriptedModel) -> None:
    model.fail(400, "The prompt was filtered")
    articles.start_worker()
    assert_fails(articles.run_client(), 1, "ContentWriterAgent", "The prompt was filtered")


def test_a_model_that_is_away_is_waited_for_and_reviewers_keep_their_state(
    articles: Sample, model: ScriptedModel
) -> None:
    articles.start_worker()
    instance = begin(articles)
    wait_for_draft(articles, instance)
    model.fail(401, "Access denied")
    assert run_review(articles, "reject", instance, "--feedback", "Shorter.").wait() == 0
    eventually(lambda: "Access denied" in state_of(articles, instance).get_custom_status(), "the reason is shown")
    assert review_in(state_of(articles, instance).get_custom_status())["attempt"] == 1
    assert "Access denied" in run_review(articles, "show", instance).output
    model.heal()
    wait_for_draft(articles, instance, 2)


def test_the_workers_of_04_and_07_on_one_hub(
    articles: Sample, sample: Callable[[str], Sample], model: ScriptedModel
) -> None:
    chain = sample("04")
    workers = [articles.start_worker(), chain.start_worker()]
    clients = [client for _ in range(4) for client in (articles.start_client(), chain.start_client())]
    for client in clients:
        assert client.popen.stdin
        client.popen.stdin.close()
        assert client.wait() == 0, client.errors
    assert all(("articles" in str(request)) == ("response_format" in request) for request in model.requests)
    assert len(model.requests) == 4 * 4
    for worker in workers:
        worker.stop()
        assert worker.errors == ""


@pytest.mark.parametrize(
    ("program", "arguments", "named"),
    [
        ("review.py", ["show", "nobody"], "nobody"),
        ("review.py", ["approve", "nobody"], "nobody"),
        ("review.py", ["reject", "nobody"], "--feedback"),
        ("review.py", ["reject", "nobody", "--feedback", " "], "--feedback"),
        ("review.py", ["approve", "nobody", "--draft", "0"], "--draft"),
        ("review.py", ["approve", "nobody", "--draft", "10001"], "--draft"),
        ("review.py", ["approve", "nobody", "--draft", "one"], "--draft"),
        ("review.py", [], "command"),
        ("client.py", ["--instance", "nobody"], "nobody"),
        ("client.py", ["--instance", "nobody", "tea"], "--instance"),
        ("client.py", ["--attempts", "many"], "--attempts"),
        ("client.py", ["--review-timeout", "0"], "--review-timeout"),
        ("review.py", ["reject", "nobody", "--feedback", "x" * 20_001], "--feedback"),
        ("review.py", ["approve", "nobody", "--timeout", "-1"], "--timeout"),
    ],
)
def test_arguments_that_make_no_sense(program: str, arguments: list[str], named: str, articles: Sample) -> None:
    assert_fails(articles.run_client(*arguments, program=program), 2, named)


def test_input_that_the_orchestration_refuses(articles: Sample) -> None:
    articles.start_worker()
    assert_fails(articles.run_client("--attempts", "0"), 1, "max_review_attempts")
    assert_fails(articles.run_client("--review-timeout", "99999999"), 1, "approval_timeout_seconds")


def test_worker_and_client_in_one_process(articles: Sample) -> None:
    sample = articles.run_client("tea", program="sample.py")
    assert sample.wait() == 0, sample.errors
    assert "Published as" in sample.output


def test_the_folder_runs_alone(articles: Sample, start: Start, tmp_path: Path) -> None:
    """Copied out: what it publishes goes into the copy."""
    shutil.copytree(articles.folder, tmp_path, ignore=shutil.ignore_patterns("published"), dirs_exist_ok=True)
    del articles.settings["CONTENT_DIRECTORY"]
    environment = articles.environment(CONTENT_DIRECTORY="")
    start(sys.executable, "worker.py", cwd=tmp_path, env=environment).wait_for("Worker ready")
    client = start(sys.executable, "client.py", cwd=tmp_path, env=environment)
    assert client.popen.stdin
    client.popen.stdin.close()
    assert client.wait() == 0, client.errors
    assert len(published(tmp_path)) == 1
