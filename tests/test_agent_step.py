"""hosting.agent_step without a server: what a step of an orchestration does while its agent is away."""

from collections.abc import Callable, Generator
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from orchestration_double import AGENT, EVENT, OrchestrationDouble
from pydantic import BaseModel, Field

DAY = 24 * 3600


class Verdict(BaseModel):
    is_spam: bool
    reason: str = Field(min_length=1)


@pytest.fixture
def step(modules: Callable[[str, str], ModuleType]) -> ModuleType:
    return modules("04", "hosting.agent_step")


Asking = Callable[..., OrchestrationDouble]


@pytest.fixture
def asking(step: ModuleType) -> Asking:
    """Runs an orchestrator of one step."""
    from agent_framework_durabletask import DurableAIAgentOrchestrationContext

    def run(expect: type[BaseModel] | None = None, in_session: bool = False, **options: Any) -> OrchestrationDouble:
        def orchestrator(context: Any, _: Any) -> Generator[Any, Any, Any]:
            agent = DurableAIAgentOrchestrationContext(context).get_agent("Judge")
            if in_session:
                options["session"] = agent.create_session()
            if expect:
                return (yield from step.ask_for(context, agent, "Judge this.", expect, **options))
            return (yield from step.ask(context, agent, "Judge this.", **options))

        return OrchestrationDouble(orchestrator)

    return run


# Answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_text(asking: Asking) -> None:
    double = asking()
    assert double.expect(AGENT, "Judge").input == "Judge this."
    double.answer("  It is fine.\n")
    assert double.output == "It is fine."


def test_a_structured_answer_is_validated(asking: Asking) -> None:
    double = asking(Verdict)
    double.answer('{"is_spam": true, "reason": "a prize"}')
    assert double.output == Verdict(is_spam=True, reason="a prize")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("I'm sorry, I can't help with that.", ["Verdict", "I'm sorry, I can't help with that."]),
        ('{"is_spam": "perhaps", "reason": "a prize"}', ["is_spam"]),
        ('{"is_spam": true, "reason": ""}', ["reason"]),
        ('{"is_spam": true', ["Invalid JSON"]),
        ("  \n", ["empty"]),
    ],
)
def test_an_answer_that_is_not_usable_is_asked_for_four_times(answer: str, words: list[str], asking: Asking) -> None:
    double = asking(Verdict)
    pauses = []
    for _ in range(3):
        double.answer(answer)
        pauses.append(double.fire_timer())
    double.answer(answer)
    assert str(double.failure).startswith("Judge: ")
    assert all(word in str(double.failure) for word in words)
    assert pauses == [1, 2, 4]
    assert double.output is None


def test_outages_do_not_count_as_unusable_answers(asking: Asking) -> None:
    double = asking()
    for _ in range(10):
        double.fail("The model failed (500)")
        double.fire_timer()
    for _ in range(3):
        double.answer("")
        double.fire_timer()
    double.answer("It is fine.")
    assert double.output == "It is fine."


def test_a_rejected_call_is_not_made_again(asking: Asking, step: ModuleType) -> None:
    double = asking()
    double.fail("The model rejects the request (400): too long", "ModelRejected")
    assert isinstance(double.failure, step.AgentFailed)
    assert str(double.failure) == "Judge: The model rejects the request (400): too long"
    assert len(double.asked) == 1


# A model that is away ---------------------------------------------------------------------------------------------


def test_it_is_waited_for_with_growing_pauses_for_a_day(asking: Asking) -> None:
    double = asking()
    began, pauses = double.current_utc_datetime, []
    while True:
        double.fail("The model failed (429): busy")
        if double.done:
            break
        pauses.append(double.fire_timer())
    assert pauses[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(pauses[10:]) == {300}
    assert str(double.failure) == "Judge: The model failed (429): busy"
    assert DAY - 300 <= (double.current_utc_datetime - began).total_seconds() <= DAY


def test_the_patience_is_the_callers(asking: Asking) -> None:
    double = asking(patience=timedelta(seconds=2))
    double.fail("The model failed (429)")
    double.fire_timer()
    double.fail("The model failed (429)")
    assert str(double.failure) == "Judge: The model failed (429)"


def test_reason_and_next_attempt_are_in_the_custom_status(asking: Asking) -> None:
    double = asking(show="so far")
    assert (double.headline, double.shown) == ("asking Judge", "so far")
    double.fail("The model failed (401): no such key")
    assert double.headline == "Judge: The model failed (401): no such key. Attempt 2 at 00:00:01 UTC"
    assert double.shown == "so far"
    double.fire_timer()
    assert (double.headline, double.shown) == ("asking Judge, attempt 2", "so far")
    double.answer("It is fine.")
    assert (double.headline, double.shown) == ("Judge has answered", "so far")


@pytest.mark.parametrize("in_session", [True, False])
def test_a_retry_is_made_in_a_new_conversation_with_its_own_words(in_session: bool, asking: Asking) -> None:
    double = asking(in_session=in_session, retry_message="Judge this: a cat.")
    for _ in range(50):
        double.fail("The model failed (500)")
        double.fire_timer()
    double.answer("It is fine.")
    first, *others = double.asked
    assert first.input == "Judge this."
    assert {call.input for call in others} == {"Judge this: a cat."}
    (other,) = {call.conversation for call in others}
    assert other != first.conversation
    assert double.emptied == [other] * 49, "emptied before each further retry"


def test_the_next_step_in_a_session_is_asked_where_the_agent_has_answered(step: ModuleType) -> None:
    from agent_framework_durabletask import DurableAIAgentOrchestrationContext

    def orchestrator(context: Any, _: Any) -> Generator[Any, Any, Any]:
        agent = DurableAIAgentOrchestrationContext(context).get_agent("Judge")
        session = agent.create_session()
        yield from step.ask(context, agent, "Write.", session=session)
        return (yield from step.ask(context, agent, "Improve that.", session=session))

    double = OrchestrationDouble(orchestrator)
    double.fail("The model failed (500)")
    double.fire_timer()
    double.answer("A sentence.")
    failed, answered, next_step = double.asked
    assert failed.conversation != answered.conversation == next_step.conversation


# TryNow -----------------------------------------------------------------------------------------------------------


def test_try_now_ends_a_pause(asking: Asking) -> None:
    double = asking()
    double.fail("The model failed (500)")
    double.raise_event("TryNow")
    assert len(double.asked) == 2
    double.answer("It is fine.")
    assert double.output == "It is fine."


def test_after_a_pause_nothing_waits_for_its_event(asking: Asking) -> None:
    double = asking()
    double.fail("The model failed (500)")
    double.fire_timer()
    assert not [call for call in double.waiting if call.kind == EVENT]


@pytest.mark.parametrize("times", [1, 3])
def test_try_now_during_an_attempt_does_not_end_the_next_pause(times: int, asking: Asking) -> None:
    double = asking()
    double.fail("The model failed (500)")
    for _ in range(1 + times):  # the first ends the pause
        double.raise_event("TryNow")
    double.fail("The model failed (500)")
    assert len(double.asked) == 2
    double.raise_event("TryNow")
    assert len(double.asked) == 3


def test_a_pause_that_was_cut_short_does_not_end_a_later_one(asking: Asking) -> None:
    double = asking()
    for _ in range(4):
        double.fail("The model failed (500)")
        double.raise_event("TryNow")  # its timer is still set
    double.fail("The model failed (500)")
    assert double.fire_timer() == 16
    assert len(double.asked) == 6


# No answer --------------------------------------------------------------------------------------------------------


def test_a_call_without_an_answer_is_waited_for_and_not_made_again(asking: Asking) -> None:
    double = asking(show="so far")
    assert double.fire_timer() == 600
    assert double.headline == "waiting for Judge since 2030-01-01 00:00 UTC: does a running worker host it?"
    assert double.shown == "so far"
    double.answer("It is fine.")
    assert double.output == "It is fine."
    assert len(double.asked) == 1


def test_a_call_without_an_answer_for_a_day_fails(asking: Asking) -> None:
    double = asking()
    double.fire_timer()
    double.fire_timer()
    assert str(double.failure) == "Judge: No answer since 2030-01-01 00:00 UTC. Does a running worker host it?"
    assert (double.current_utc_datetime.day, len(double.asked)) == (2, 1)


def test_an_answer_that_comes_late_may_be_a_failure(asking: Asking) -> None:
    double = asking()
    double.fire_timer()
    double.fail("The model failed (500)")
    assert double.fire_timer() == 1
    double.answer("It is fine.")
    assert double.output == "It is fine."
