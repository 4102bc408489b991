"""Sample 04: two calls of one agent in one conversation, whatever happens in between."""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from conftest import Sample, eventually
from orchestration_double import AGENT, TIMER, OrchestrationDouble
from orchestrations import assert_fails, complaints, instance_of, scheduler_client, state_of
from scripted_model import ScriptedModel

DRAFT = "Learning something new every day makes life better."
IMPROVED = "Every day you dare to learn something new, you open a door that nobody can ever close again."
NO_RETRY = {"x-should-retry": "false"}  # tells the model's SDK to leave retrying to the orchestration


@pytest.fixture
def chain(sample: Callable[[str], Sample]) -> Sample:
    return sample("04")


@pytest.fixture
def orchestrator(modules: Callable[[str, str], ModuleType]) -> Callable[..., Any]:
    return modules("04", "orchestration").single_agent_chaining_orchestration


def texts(request: dict[str, Any]) -> list[str]:
    """The messages of a request to the model, without the agent's instructions."""
    return [message["content"] for message in request["messages"] if message["role"] != "system"]


# The pattern, without a server ------------------------------------------------------------------------------------


def test_the_second_call_is_made_in_the_conversation_of_the_first(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "the sea")
    first = double.expect(AGENT, "WriterAgent")
    assert "about the sea" in first.input
    double.answer("The sea is wide.")
    second = double.expect(AGENT, "WriterAgent")
    assert second.conversation == first.conversation
    assert "under 25 words" in second.input
    assert double.custom_status == "The sea is wide."
    double.answer("The sea is wider than any worry.")
    assert double.output == "The sea is wider than any worry."


def test_without_a_topic_it_is_about_learning(orchestrator: Callable[..., Any]) -> None:
    assert "about learning" in OrchestrationDouble(orchestrator).expect(AGENT).input


@pytest.mark.parametrize("topic", ["", "  ", 7, {"topic": "sea"}, "x" * 501])
def test_a_topic_that_is_none_fails(topic: Any, orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, topic)
    assert "Topic" in str(double.failure)
    assert not double.calls


def test_a_second_call_that_fails_does_not_repeat_the_first(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator)
    double.answer(DRAFT)
    double.fail("The model failed (500)")
    double.fire_timer()
    assert "under 25 words" in double.expect(AGENT).input
    assert [call.kind for call in double.calls] == [AGENT, AGENT, TIMER, AGENT]
    double.answer(IMPROVED)
    assert double.output == IMPROVED


def test_a_call_that_is_rejected_fails_it(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator)
    double.fail("The model rejects the request (400)", "ModelRejected")
    assert str(double.failure) == "WriterAgent: The model rejects the request (400)"


# End to end -------------------------------------------------------------------------------------------------------


def test_the_demonstration(chain: Sample, model: ScriptedModel) -> None:
    worker = chain.start_worker()
    client = chain.run_client()
    assert client.wait() == 0, client.errors
    assert client.output.endswith(f"First draft:   {DRAFT}\nImproved:      {IMPROVED}\n")
    assert state_of(chain, instance_of(client)).get_output() == IMPROVED
    assert texts(model.requests[1])[:2] == [*texts(model.requests[0]), DRAFT]
    assert len(model.requests) == 2
    worker.stop()
    assert worker.errors == ""


def test_a_topic_of_ones_own(chain: Sample) -> None:
    chain.start_worker()
    client = chain.run_client("the sea")
    assert client.wait() == 0
    assert "Nature" in client.output


def test_without_input_as_other_clients_start_it(chain: Sample) -> None:
    chain.start_worker()
    with scheduler_client(chain) as client:
        instance = client.schedule_new_orchestration("single_agent_chaining_orchestration")
        state = client.wait_for_orchestration_completion(instance)
    assert state
    assert state.get_output() == IMPROVED


def test_worker_and_client_in_one_process(chain: Sample) -> None:
    both = chain.run_client(program="sample.py")
    assert both.wait() == 0, both.errors
    assert IMPROVED in both.output
    assert complaints(both) == ""


def test_the_worker_is_killed_at_every_step(chain: Sample, model: ScriptedModel) -> None:
    first_gate = model.held = threading.Event()
    worker = chain.start_worker()
    client = chain.start_client()
    eventually(lambda: model.asked("Write a concise"), "the first step is under way")
    worker.kill()
    worker = chain.start_worker()
    eventually(lambda: len(model.asked("Write a concise")) == 2, "the first step is taken up again")

    second_gate = model.held = threading.Event()
    first_gate.set()
    eventually(lambda: model.asked("Improve that sentence"), "the second step is under way")
    worker.kill()
    worker = chain.start_worker()
    eventually(lambda: len(model.asked("Improve that sentence")) == 2, "the second step is taken up again")
    second_gate.set()

    assert client.wait() == 0, client.errors
    assert client.output.endswith(f"First draft:   {DRAFT}\nImproved:      {IMPROVED}\n")
    assert len(model.asked("Write a concise")) == 2, "a finished step is not asked of the model again"
    assert len(texts(model.requests[-1])) == 3, "the conversation has each turn once"


def test_the_worker_is_killed_in_the_pause_before_a_retry(chain: Sample, model: ScriptedModel) -> None:
    model.say("", times=1)
    worker = chain.start_worker()
    client = chain.start_client()
    eventually(lambda: "empty" in worker.errors, "the first attempt has failed")
    worker.kill()
    chain.start_worker()
    assert client.wait() == 0, client.errors
    assert f"Improved:      {IMPROVED}" in client.output


# What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("step", ["Write a concise", "Improve that sentence"])
def test_a_model_that_recovers(status: int, step: str, chain: Sample, model: ScriptedModel) -> None:
    def of_this_step(request: dict[str, Any]) -> bool:
        return step in str(request["messages"][-1]["content"])

    model.fail(status, times=2, headers=NO_RETRY, matches=of_this_step)  # two attempts
    chain.start_worker()
    client = chain.run_client()
    assert client.wait() == 0, client.errors
    assert f"Improved:      {IMPROVED}" in client.output
    assert len(model.asked(step)) == 3


def test_a_model_that_does_not_recover(chain: Sample, model: ScriptedModel) -> None:
    model.fail(500, "out of order", headers=NO_RETRY)
    worker = chain.start_worker()
    client = chain.run_client()
    assert_fails(client, 1, "WriterAgent", "500", "out of order")
    assert complaints(client).count("\n") == 1
    assert state_of(chain, instance_of(client)).runtime_status.name == "FAILED"
    assert len(model.requests) == 4
    worker.stop()
    assert "Traceback" not in worker.errors
    assert_fails(chain.run_client("--instance", instance_of(client)), 1, "out of order")


def test_a_rejected_call_is_made_once(chain: Sample, model: ScriptedModel) -> None:
    model.fail(401, "Access denied due to invalid subscription key")
    chain.start_worker()
    client = chain.run_client()
    assert_fails(client, 1, "WriterAgent", "401", "Access denied due to invalid subscription key")
    assert complaints(client).count("\n") == 1
    assert len(model.requests) == 1


def test_an_empty_answer_is_never_a_result(chain: Sample, model: ScriptedModel) -> None:
    model.say("")
    chain.start_worker()
    client = chain.run_client()
    assert_fails(client, 1, "WriterAgent", "empty")
    assert "Improved:" not in client.output


def test_an_empty_topic(chain: Sample) -> None:
    chain.start_worker()
    assert_fails(chain.run_client(""), 1, "Topic")


def test_a_topic_for_what_was_started_already(chain: Sample) -> None:
    assert_fails(chain.run_client("--instance", "x", "the sea"), 2, "--instance")
