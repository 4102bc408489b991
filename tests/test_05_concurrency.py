"""Sample 05: two agents at once, and what is kept when one of them fails."""

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from conftest import Process, Sample, eventually
from durabletask.history import EntityOperationCompletedEvent
from orchestration_double import AGENT, OrchestrationDouble
from orchestrations import assert_fails, complaints, instance_of, scheduler_client, state_of
from scripted_model import ScriptedModel

NO_RETRY = {"x-should-retry": "false"}  # tells the model's SDK to leave retrying to the orchestration
TO_A_PHYSICIST = "To a physicist, temperature measures"
TO_A_CHEMIST = "To a chemist, temperature decides"


@pytest.fixture
def experts(sample: Callable[[str], Sample]) -> Sample:
    return sample("05")


@pytest.fixture
def orchestrator(modules: Callable[[str, str], ModuleType]) -> Callable[..., Any]:
    return modules("05", "orchestration").multi_agent_concurrent_orchestration


def is_for(field: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a request to the model comes from the expert in this field."""
    return lambda request: field in str(request["messages"][0]["content"])


def asked(model: ScriptedModel, field: str) -> int:
    """How often the expert in this field has asked the model."""
    return len([request for request in list(model.requests) if is_for(field)(request)])


# The pattern, without a server ------------------------------------------------------------------------------------


def agents_waiting(double: OrchestrationDouble) -> set[str]:
    return {call.name.lower() for call in double.waiting if call.kind == AGENT}


def test_both_are_asked_at_once(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    assert agents_waiting(double) == {"physicistagent", "chemistagent"}
    assert {call.input for call in double.calls} == {"What is heat?"}
    assert len({call.conversation for call in double.calls}) == 2
    double.answer("bonds", "ChemistAgent")
    assert not double.done
    double.answer("motion", "PhysicistAgent")
    assert double.output == {"physicist": "motion", "chemist": "bonds"}


def test_only_what_is_missing_is_asked_again(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.answer("motion", "PhysicistAgent")
    double.fail("The model failed (500)", agent="ChemistAgent")
    assert double.custom_status == {"physicist": "motion"}
    double.fire_timer()
    assert agents_waiting(double) == {"chemistagent"}
    double.answer("bonds", "ChemistAgent")
    assert list(double.output.items()) == [("physicist", "motion"), ("chemist", "bonds")]


def test_the_first_to_recover_is_kept_too(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.fail("The model failed (500)", agent="PhysicistAgent")
    double.fail("The model failed (500)", agent="ChemistAgent")
    double.fire_timer()
    double.answer("bonds", "ChemistAgent")
    double.fail("The model failed (500)", agent="PhysicistAgent")
    double.fire_timer()
    assert agents_waiting(double) == {"physicistagent"}
    double.answer("motion")
    assert list(double.output.items()) == [("physicist", "motion"), ("chemist", "bonds")]


def test_one_that_fails_for_good_is_named_and_the_other_kept(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.answer("motion", "PhysicistAgent")
    for number in range(1, 4):
        double.fail(f"failure {number}")
        double.fire_timer()
    double.fail("failure 4")
    assert str(double.failure) == "ChemistAgent: failure 4"
    assert double.custom_status == {"physicist": "motion"}


def test_one_that_is_rejected_is_not_asked_again_and_the_other_is(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.fail("The model rejects the request (400)", "ModelRejected", agent="PhysicistAgent")
    double.fail("The model failed (500)", agent="ChemistAgent")
    double.fire_timer()
    assert agents_waiting(double) == {"chemistagent"}
    double.answer("bonds")
    assert str(double.failure) == "PhysicistAgent: The model rejects the request (400)"
    assert double.custom_status == {"chemist": "bonds"}


def test_both_that_fail_are_named(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.fail("no", "ModelRejected", agent="PhysicistAgent")
    double.fail("never", "ModelRejected", agent="ChemistAgent")
    assert str(double.failure) == "PhysicistAgent: no\nChemistAgent: never"


@pytest.mark.parametrize("question", [None, "", " ", 7, {"question": "heat"}, "x" * 10_001])
def test_a_question_that_is_none_fails(question: Any, orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, question)
    assert "Question" in str(double.failure)
    assert not double.calls


def answers_recorded(experts: Sample, instance_id: str) -> int:
    """How many answers of agents the orchestration's history holds."""
    with scheduler_client(experts) as client:
        history = client.get_orchestration_history(instance_id)
    return sum(isinstance(event, EntityOperationCompletedEvent) for event in history)


# End to end -------------------------------------------------------------------------------------------------------


def assert_both_answer(client: Process) -> None:
    assert client.wait() == 0, client.errors
    assert f"Physicist: {TO_A_PHYSICIST}" in client.output
    assert f"Chemist: {TO_A_CHEMIST}" in client.output


def test_the_demonstration(experts: Sample, model: ScriptedModel) -> None:
    worker = experts.start_worker()
    client = experts.run_client()
    assert_both_answer(client)
    assert complaints(client) == ""
    assert "Question:      What is temperature?" in client.output
    assert set(state_of(experts, instance_of(client)).get_output()) == {"physicist", "chemist"}
    assert len(model.requests) == 2
    worker.stop()
    assert worker.errors == ""


def test_a_question_of_ones_own(experts: Sample) -> None:
    experts.start_worker()
    client = experts.run_client("What is a black hole?")
    assert client.wait() == 0
    assert "event horizon" in client.output


def test_worker_and_client_in_one_process(experts: Sample) -> None:
    both = experts.run_client(program="sample.py")
    assert_both_answer(both)
    assert complaints(both) == ""


def test_both_calls_are_under_way_at_the_same_time(experts: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    experts.start_worker()
    client = experts.start_client()
    eventually(lambda: len(model.requests) == 2, "both experts are being asked")
    model.held.set()
    assert_both_answer(client)


def test_two_answers_of_a_second_each_take_about_one(experts: Sample, model: ScriptedModel) -> None:
    model.delay = 1.0
    experts.start_worker()
    client = experts.run_client()
    assert_both_answer(client)
    state = state_of(experts, instance_of(client))
    assert 1.0 <= (state.last_updated_at - state.created_at).total_seconds() < 2.0


def test_many_pairs_of_answers_that_arrive_at_the_same_moment(experts: Sample, model: ScriptedModel) -> None:
    """The scheduler once lost the second of two answers that came while the first was being worked on."""
    model.held = threading.Event()
    experts.start_worker()
    with scheduler_client(experts) as client:
        instances = [
            client.schedule_new_orchestration("multi_agent_concurrent_orchestration", input="What is temperature?")
            for _ in range(20)
        ]
        eventually(lambda: len(model.requests) == 40, "all are being asked")
        model.held.set()
        for instance in instances:
            state = client.wait_for_orchestration_completion(instance, timeout=30)
            assert state
            assert set(state.get_output()) == {"physicist", "chemist"}
    assert len(model.requests) == 40


def test_the_worker_is_killed_at_every_step(experts: Sample, model: ScriptedModel) -> None:
    both_gate = model.held = threading.Event()
    worker = experts.start_worker()
    client = experts.start_client()
    eventually(lambda: len(model.requests) == 2, "both are under way")
    worker.kill()
    worker = experts.start_worker()
    eventually(lambda: len(model.requests) == 4, "both are taken up again")

    model.say("", times=2, matches=is_for("chemistry"))  # to the dead worker, too
    chemist_gate = model.held = threading.Event()
    both_gate.set()
    eventually(lambda: asked(model, "chemistry") == 3, "only the chemist, who said nothing, is asked again")
    worker.kill()
    experts.start_worker()
    eventually(lambda: asked(model, "chemistry") == 4, "the chemist's second attempt is taken up again")
    chemist_gate.set()

    assert_both_answer(client)
    assert asked(model, "physics") == 2, "an answer that has arrived is not asked for again"


def test_the_worker_is_killed_with_one_answer_there(experts: Sample, model: ScriptedModel) -> None:
    """The physicist has answered, the chemist not yet: the half that is done stays done."""
    gate = model.held = threading.Event()
    model.held_for = is_for("chemistry")
    worker = experts.start_worker()
    client = experts.start_client()
    eventually(lambda: len(model.requests) == 2, "both are under way")
    instance = instance_of(client)
    eventually(lambda: answers_recorded(experts, instance) == 1, "the physicist's answer is recorded")
    worker.kill()
    experts.start_worker()
    eventually(lambda: asked(model, "chemistry") == 2, "the chemist is asked again")
    gate.set()
    assert_both_answer(client)
    assert asked(model, "physics") == 1


# What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500])
def test_one_that_recovers(status: int, experts: Sample, model: ScriptedModel) -> None:
    model.fail(status, times=2, headers=NO_RETRY, matches=is_for("chemistry"))  # two attempts
    experts.start_worker()
    assert_both_answer(experts.run_client())
    assert (asked(model, "physics"), asked(model, "chemistry")) == (1, 3)


def test_one_that_fails_for_good(experts: Sample, model: ScriptedModel) -> None:
    model.fail(500, "out of order", headers=NO_RETRY, matches=is_for("chemistry"))
    worker = experts.start_worker()
    client = experts.run_client()
    assert_fails(client, 1, "ChemistAgent: ", "out of order")
    assert "PhysicistAgent" not in client.errors
    assert TO_A_PHYSICIST in client.output, "the answer that is there is shown"
    state = state_of(experts, instance_of(client))
    assert state.runtime_status.name == "FAILED"
    assert state.get_custom_status()["physicist"].startswith(TO_A_PHYSICIST)
    assert asked(model, "physics") == 1
    assert "Traceback" not in worker.errors

    later = experts.run_client("--instance", instance_of(client))
    assert_fails(later, 1, "ChemistAgent: ", "out of order")
    assert TO_A_PHYSICIST in later.output


def test_a_rejected_call_is_made_once(experts: Sample, model: ScriptedModel) -> None:
    model.fail(400, "content filter", matches=is_for("physics"))
    experts.start_worker()
    client = experts.run_client()
    assert_fails(client, 1, "PhysicistAgent: ", "content filter")
    assert TO_A_CHEMIST in client.output
    assert (asked(model, "physics"), asked(model, "chemistry")) == (1, 1)


def test_an_empty_answer_is_never_a_result(experts: Sample, model: ScriptedModel) -> None:
    model.say("", matches=is_for("physics"))
    experts.start_worker()
    assert_fails(experts.run_client(), 1, "PhysicistAgent: ", "empty")


def test_an_empty_question(experts: Sample) -> None:
    experts.start_worker()
    assert_fails(experts.run_client(""), 1, "Question")


def test_a_question_for_what_was_started_already(experts: Sample) -> None:
    assert_fails(experts.run_client("--instance", "x", "What is heat?"), 2, "--instance")
