"""Sample 01, a conversation that grows: a full one says that it is full, and with the option it never becomes full."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, Process, Sample, Start
from scripted_model import ScriptedModel

LIMIT = 1024 * 1024

README = (ROOT / "01_single_agent" / "README.md").read_text(encoding="utf-8")
PLAIN = "DurableAIAgentWorker(worker).add_agent(create_joker())"
# The lines that the README says to change worker.py by.
IMPORT = "from long_conversation import bounded_conversations\n"
BOUNDED = "DurableAIAgentWorker(bounded_conversations(worker, summarize_after_turns=20)).add_agent(create_joker())"


class Talk:
    """One conversation with Joker, turn by turn."""

    def __init__(self, load: Callable[[str, str], ModuleType]) -> None:
        self._error = load("01", "hosting.program").AgentError
        agent_client = load("01", "hosting.agent_client")
        scheduler = load("01", "hosting.scheduler").scheduler_client()
        self._agents = agent_client.AgentClient(scheduler, timeout=60)
        self._joker = self._agents.get_agent("Joker")
        self._impatient = agent_client.AgentClient(scheduler, timeout=3)
        self._session = self._joker.create_session()

    @property
    def key(self) -> str:
        return self._session.durable_session_id.key

    def say(self, text: str) -> str:
        return self._joker.run(text, session=self._session).text

    def send(self, text: str) -> None:
        """A turn whose answer nobody waits for."""
        self._joker.run(text, session=self._session, options={"wait_for_response": False})

    def refused(self, text: str) -> str:
        """The error that a turn ends with, at the latest after 3 seconds."""
        self._impatient.stored_conversation(self._session)  # as client.py does when it continues a conversation
        with pytest.raises(self._error) as caught:
            self._impatient.get_agent("Joker").run(text, session=self._session)
        return str(caught.value)

    def stored(self) -> Any:
        return self._agents.stored_conversation(self._session)

    def stored_texts(self) -> list[str]:
        return [
            "".join(content.get("text", "") for content in message["contents"])
            for turn in self.stored().turns
            for message in turn["messages"]
        ]

    def stored_bytes(self) -> int:
        return len(self.stored().state)


@pytest.fixture
def joker(sample: Callable[[str], Sample]) -> Sample:
    return sample("01")


@pytest.fixture
def talk(joker: Sample, modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Talk:
    for name, value in joker.settings.items():
        monkeypatch.setenv(name, value)
    return Talk(modules)


StartBounded = Callable[[int], Process]


@pytest.fixture
def start_bounded(joker: Sample, start: Start, tmp_path: Path) -> StartBounded:
    """Starts a worker that was changed as the README says; with this number of turns, not 20."""
    folder = shutil.copytree(joker.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__", ".env"))

    def start_one(turns: int) -> Process:
        source = (joker.folder / "worker.py").read_text()
        changed = source.replace(PLAIN, BOUNDED.replace("20", str(turns))).replace("\n\n\n", f"\n{IMPORT}\n\n", 1)
        (folder / "worker.py").write_text(changed)
        return Sample(folder, start, joker.settings).start_worker()

    return start_one


def test_the_readme_says_what_to_change_in_the_worker() -> None:
    assert f"\n{IMPORT}" in README
    assert BOUNDED in README
    assert PLAIN in (ROOT / "01_single_agent" / "worker.py").read_text()


def is_for_summary(request: dict[str, Any]) -> bool:
    return "summary of a conversation" in str(request["messages"][0]["content"])


def small_talk(number: int) -> str:
    """A message of about 200 characters that states nothing."""
    topic = ("cats", "coffee", "dogs", "pirates", "robots")[number % 5]
    return f"Question {number}: tell a joke about {topic}. " + "So! " * 38


# With the option ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_thousand_turns_stay_small_and_the_last_knows_the_first(
    start_bounded: StartBounded, talk: Talk, model: ScriptedModel
) -> None:
    few = 8  # a short history makes a thousand turns quick to test
    worker = start_bounded(few)
    talk.say("My name is Ada and my ship is the Meridian.")
    largest = 0
    for number in range(2, 1000):
        if number in (333, 666):
            worker.kill()
            worker = start_bounded(few)
        if number % 10:
            talk.send(small_talk(number))
        else:
            assert talk.say(small_talk(number))
            largest = max(largest, talk.stored_bytes())
    assert talk.say("What is my name?") == "Your name is Ada."
    assert "Meridian" in talk.say("What is my ship called?")
    assert 1_000 < largest < 10_000
    assert max(len(json.dumps(request)) for request in model.requests) < 10_000
    summaries = [request for request in model.requests if is_for_summary(request)]
    assert 245 <= len(summaries) <= 260  # one every four turns, and some again for the killed workers
    worker.stop()
    assert worker.errors == ""


def test_the_newest_turns_stay_word_by_word(start_bounded: StartBounded, talk: Talk, model: ScriptedModel) -> None:
    start_bounded(4)
    for number in range(1, 5):
        talk.say(f"Turn {number}.")
    assert not any(is_for_summary(request) for request in model.requests)
    assert talk.stored().message_count == 8
    talk.say("Turn 5.")
    said = [text for text in talk.stored_texts() if text.startswith("Turn")]
    assert said == ["Turn 3.", "Turn 4.", "Turn 5."]
    summary = talk.stored_texts()[0]
    assert summary.startswith("Summary of our conversation")
    assert "Turn 1." in summary
    sent = [message["content"] for message in model.requests[-1]["messages"] if message["role"] == "user"]
    assert sent == [summary, *said]


def test_a_summary_that_fails_costs_nothing_and_is_tried_again(
    start_bounded: StartBounded, talk: Talk, model: ScriptedModel
) -> None:
    worker = start_bounded(2)
    model.fail(400, "no summaries today", matches=is_for_summary)
    for number in range(1, 4):
        assert talk.say(f"Turn {number}.")
    assert talk.stored().message_count == 6
    model.heal()
    model.say("  ", matches=is_for_summary)  # no answer either
    assert talk.say("Turn 4.")
    assert talk.stored().message_count == 8
    model.heal()
    assert talk.say("Turn 5.")
    assert [text for text in talk.stored_texts() if text.startswith("Turn")] == ["Turn 4.", "Turn 5."]
    worker.stop()
    assert "Not summarized: " in worker.errors
    assert "no summaries today" in worker.errors
    assert "Traceback" not in worker.errors


def test_a_summary_is_cut_where_the_model_does_not_end(
    start_bounded: StartBounded, talk: Talk, model: ScriptedModel
) -> None:
    start_bounded(2)
    model.say("and so on " * 50_000, matches=is_for_summary)
    for number in range(1, 7):
        assert talk.say(f"Turn {number}.")
    assert talk.stored_bytes() < 10_000


def test_long_turns_are_summarized_before_they_are_many(start_bounded: StartBounded, talk: Talk) -> None:
    start_bounded(20)
    talk.say("My name is Ada.")
    for _ in range(8):
        talk.say("A long story. " * 15_000)
        assert talk.stored_bytes() < LIMIT
    assert talk.say("What is my name?") == "Your name is Ada."


def test_a_full_conversation_continues_with_the_option(
    joker: Sample, start_bounded: StartBounded, talk: Talk, model: ScriptedModel
) -> None:
    worker = joker.start_worker()
    talk.say("My name is Ada.")
    talk.say("A long story. " * 17_000)
    talk.say("I like tea.")
    for _ in range(3):
        talk.say("A long story. " * 17_000)
    assert "full" in talk.refused("A long story. " * 17_000)
    worker.stop()
    start_bounded(20)
    assert talk.say("What is my name?") == "Your name is Ada."
    assert talk.stored_texts()[0].startswith("Summary")
    assert "tea" in talk.stored_texts()[0]  # a summary in pieces, each from the one before it
    assert max(len(str(request)) for request in model.requests if is_for_summary(request)) < 70_000


# Without it ---------------------------------------------------------------------------------------------------------


def fill(talk: Talk) -> None:
    """Say so much that less than 100,000 bytes are left."""
    talk.say("My name is Ada.")
    for _ in range(4):
        talk.say("A long story. " * 17_000)
    assert LIMIT * 0.9 < talk.stored_bytes() < LIMIT


def test_a_full_conversation_says_so_immediately_and_stays_as_it_was(
    joker: Sample, talk: Talk, model: ScriptedModel
) -> None:
    joker.start_worker()
    fill(talk)
    before, asked = talk.stored_texts(), len(model.requests)
    began = time.monotonic()
    client = joker.run_client("--session", talk.key, "A long story. " * 8_000)
    assert client.wait() == 1
    assert time.monotonic() - began < 20
    for word in ("conversation is full", "1,032,192", "Start a new one"):
        assert word in client.errors
    assert client.errors.count("\n") == 1
    assert "full" in talk.refused("A long story. " * 8_000)
    assert len(model.requests) == asked, "what cannot be stored is not paid for"
    assert talk.stored_texts() == before
    assert talk.say("What is my name?") == "Your name is Ada."  # a short turn still fits


def test_an_answer_that_does_not_fit_is_said_to_be_lost(joker: Sample, talk: Talk, model: ScriptedModel) -> None:
    joker.start_worker()
    fill(talk)
    before = talk.stored_texts()
    model.say("x" * 200_000, times=1)
    problem = talk.refused("Hello")
    assert "lost if its answer does not fit into 1 MB" in problem
    assert "kept" not in problem
    assert talk.stored_texts() == before
    assert talk.say("What is my name?") == "Your name is Ada."


def test_a_question_in_a_large_conversation_may_only_wait_for_its_worker(joker: Sample, talk: Talk) -> None:
    worker = joker.start_worker()
    fill(talk)
    worker.kill()
    assert "lost if its answer does not fit" in talk.refused("What is my name?")
    joker.start_worker()
    assert talk.say("Hello")
    assert "Your name is Ada." in talk.stored_texts()
