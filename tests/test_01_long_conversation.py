"""Sample 01, a conversation that grows: summarized in time it goes on for ever, and a full one says that it is full."""

import json
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from conftest import Sample
from scripted_model import ScriptedModel

TWENTY = {"SUMMARIZE_AFTER_TURNS": "20"}
LIMIT = 1024 * 1024


class Talk:
    """One conversation with Joker, turn by turn."""

    def __init__(self, support: ModuleType) -> None:
        self._error = support.AgentError
        self._agents = support.agent_client(["Joker"], timeout=60)
        self._joker = self._agents.get_agent("Joker")
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
        """The error that a turn ends with."""
        with pytest.raises(self._error) as caught:
            self.say(text)
        return str(caught.value)

    def stored(self) -> Any:
        return self._agents.stored_conversation(self._session)

    def stored_texts(self) -> list[str]:
        return [message.text for entry in self.stored().data.conversation_history for message in entry.messages]

    def stored_bytes(self) -> int:
        return len(self.stored().to_json())


@pytest.fixture
def joker(sample: Callable[[str], Sample]) -> Sample:
    return sample("01")


@pytest.fixture
def talk(joker: Sample, modules: Callable[[str, str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Talk:
    for name, value in joker.settings.items():
        monkeypatch.setenv(name, value)
    return Talk(modules("01", "support"))


def is_for_summary(request: dict[str, Any]) -> bool:
    return "summary of a conversation" in str(request["messages"][0]["content"])


def small_talk(number: int) -> str:
    """A message of about 200 characters that states nothing."""
    topic = ("cats", "coffee", "dogs", "pirates", "robots")[number % 5]
    return f"Question {number}: tell a joke about {topic}. " + "So! " * 38


# With the option ----------------------------------------------------------------------------------------------------


def test_a_thousand_turns_stay_small_and_the_last_knows_the_first(
    joker: Sample, talk: Talk, model: ScriptedModel
) -> None:
    few = {"SUMMARIZE_AFTER_TURNS": "8"}  # a short history is what makes a thousand turns quick to test
    worker = joker.start_worker(**few)
    talk.say("My name is Ada and my ship is the Meridian.")
    largest = 0
    for number in range(2, 1000):
        if number in (333, 666):
            worker.kill()
            worker = joker.start_worker(**few)
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


def test_the_newest_turns_stay_word_by_word(joker: Sample, talk: Talk, model: ScriptedModel) -> None:
    joker.start_worker(SUMMARIZE_AFTER_TURNS="4")
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


def test_a_summary_that_fails_costs_nothing_and_is_tried_again(joker: Sample, talk: Talk, model: ScriptedModel) -> None:
    worker = joker.start_worker(SUMMARIZE_AFTER_TURNS="2")
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


def test_a_summary_is_cut_where_the_model_does_not_end(joker: Sample, talk: Talk, model: ScriptedModel) -> None:
    joker.start_worker(SUMMARIZE_AFTER_TURNS="2")
    model.say("and so on " * 50_000, matches=is_for_summary)
    for number in range(1, 7):
        assert talk.say(f"Turn {number}.")
    assert talk.stored_bytes() < 10_000


def test_long_turns_are_summarized_before_they_are_many(joker: Sample, talk: Talk) -> None:
    joker.start_worker(**TWENTY)
    talk.say("My name is Ada.")
    for _ in range(8):
        talk.say("A long story. " * 15_000)
        assert talk.stored_bytes() < LIMIT
    assert talk.say("What is my name?") == "Your name is Ada."


def test_a_full_conversation_goes_on_when_the_option_is_set(joker: Sample, talk: Talk, model: ScriptedModel) -> None:
    worker = joker.start_worker()
    talk.say("My name is Ada.")
    talk.say("A long story. " * 17_000)
    talk.say("I like tea.")
    for _ in range(3):
        talk.say("A long story. " * 17_000)
    assert "full" in talk.refused("A long story. " * 17_000)
    worker.stop()
    joker.start_worker(**TWENTY)
    assert talk.say("What is my name?") == "Your name is Ada."
    assert talk.stored_texts()[0].startswith("Summary")
    assert "tea" in talk.stored_texts()[0]  # a summary in pieces, each from the one before it
    assert max(len(str(request)) for request in model.requests if is_for_summary(request)) < 70_000


# Without it ---------------------------------------------------------------------------------------------------------


def test_a_full_conversation_says_so_at_once_and_stays_as_it_was(
    joker: Sample, talk: Talk, model: ScriptedModel
) -> None:
    worker = joker.start_worker()
    talk.say("My name is Ada.")
    for _ in range(4):
        talk.say("A long story. " * 17_000)
    kept, asked = talk.stored().message_count, len(model.requests)
    began = time.monotonic()
    client = joker.run_client("--session", talk.key, "A long story. " * 8_000)
    assert client.wait() == 1
    assert time.monotonic() - began < 20
    for word in ("conversation is full", "1,048,576", "Start a new one", "SUMMARIZE_AFTER_TURNS"):
        assert word in client.errors
    assert client.errors.count("\n") == 1
    for _ in range(20):
        assert "full" in talk.refused("A long story. " * 8_000)
    assert len(model.requests) == asked  # what cannot be stored is not paid for
    assert kept < talk.stored().message_count < kept + 15
    assert LIMIT * 0.9 < talk.stored_bytes() < LIMIT
    assert talk.say("What is my name?") == "Your name is Ada."  # a short turn still fits
    worker.stop()
    assert "conversation is full" in worker.errors
    assert talk.key in worker.errors


def test_an_answer_too_large_to_be_stored_is_refused(joker: Sample, talk: Talk, model: ScriptedModel) -> None:
    joker.start_worker()
    talk.say("My name is Ada.")
    model.say("x" * LIMIT, times=1)
    assert "full" in talk.refused("Hello")
    assert talk.stored().message_count == 3
    assert talk.say("What is my name?") == "Your name is Ada."


@pytest.mark.parametrize("value", ["1", "-5", "ten"])
def test_no_number_of_turns(value: str, joker: Sample) -> None:
    worker = joker.start_client(program="worker.py", SUMMARIZE_AFTER_TURNS=value)
    assert worker.wait() == 2
    assert worker.errors.count("\n") == 1
    assert f"SUMMARIZE_AFTER_TURNS={value}" in worker.errors
