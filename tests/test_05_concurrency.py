"""Sample 05: two agents at once, and what is kept when one of them fails."""

import json
import threading
from collections.abc import Callable, Generator
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest
from conftest import Process, Sample, eventually
from durabletask.history import EntityOperationCompletedEvent
from orchestration_double import ACTIVITY, AGENT, OrchestrationDouble
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


def test_both_are_asked_at_the_same_time(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    assert agents_waiting(double) == {"physicistagent", "chemistagent"}
    assert {call.input for call in double.asked} == {"What is heat?"}
    assert len({call.conversation for call in double.asked}) == 2
    assert double.headline == "asking PhysicistAgent · asking ChemistAgent"
    double.answer("bonds", "ChemistAgent")
    assert not double.done
    double.answer("motion", "PhysicistAgent")
    assert list(double.output.items()) == [("physicist", "motion"), ("chemist", "bonds")]


def test_what_has_arrived_is_shown_while_the_rest_is_asked_again(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.answer("Bewegung, °C", "PhysicistAgent")
    assert double.shown == '{"physicist": "Bewegung, °C"}'
    double.fail("The model failed (500)", agent="ChemistAgent")
    assert "ChemistAgent: The model failed (500). Attempt 2" in double.headline
    double.fire_timer()
    assert agents_waiting(double) == {"chemistagent"}
    assert double.shown == '{"physicist": "Bewegung, °C"}'
    double.answer("bonds", "ChemistAgent")
    assert double.output == {"physicist": "Bewegung, °C", "chemist": "bonds"}


def test_each_is_retried_on_its_own(orchestrator: Callable[..., Any]) -> None:
    """The physicist's second attempt does not wait for the chemist, who has not answered the first question."""
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.fail("The model failed (500)", agent="PhysicistAgent")
    double.fire_timer()
    assert agents_waiting(double) == {"physicistagent", "chemistagent"}
    double.answer("motion", "PhysicistAgent")
    double.fail("The model failed (500)", agent="ChemistAgent")
    double.fire_timer()
    assert agents_waiting(double) == {"chemistagent"}
    double.answer("bonds")
    assert list(double.output.items()) == [("physicist", "motion"), ("chemist", "bonds")]
    assert len(double.asked) == 4


def test_one_model_may_be_away_for_hours(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.answer("motion", "PhysicistAgent")
    pauses = []
    for _ in range(60):
        double.fail("The model failed (401)")
        pauses.append(double.fire_timer())
    assert pauses[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert set(pauses[9:]) == {300}
    double.answer("bonds")
    assert double.output == {"physicist": "motion", "chemist": "bonds"}


def test_one_that_fails_for_good_is_named_and_the_other_kept(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.answer("motion", "PhysicistAgent")
    for number in range(1, 4):
        double.fail(f"failure {number}", "AnswerUnusable")
        double.fire_timer()
    double.fail("failure 4", "AnswerUnusable")
    assert str(double.failure) == "ChemistAgent: failure 4"
    assert json.loads(double.shown) == {"physicist": "motion"}


def test_one_that_is_rejected_is_not_asked_again_and_the_other_is(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.fail("The model rejects the request (400)", "ModelRejected", agent="PhysicistAgent")
    double.fail("The model failed (500)", agent="ChemistAgent")
    assert double.headline.startswith("PhysicistAgent: The model rejects the request (400) · ChemistAgent: ")
    double.fire_timer()
    assert agents_waiting(double) == {"chemistagent"}
    double.answer("bonds")
    assert str(double.failure) == "PhysicistAgent: The model rejects the request (400)"
    assert json.loads(double.shown) == {"chemist": "bonds"}


def test_both_that_fail_are_named(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, "What is heat?")
    double.fail("never", "ModelRejected", agent="ChemistAgent")
    double.fail("no", "ModelRejected", agent="PhysicistAgent")
    assert str(double.failure) == "ChemistAgent: never\nPhysicistAgent: no"


@pytest.mark.parametrize("question", [None, "", " ", 7, {"question": "heat"}, "x" * 10_001])
def test_a_question_that_is_none_fails(question: Any, orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, question)
    assert "Question" in str(double.failure)
    assert "\n" not in str(double.failure)
    assert not double.calls


# Steps at the same time -------------------------------------------------------------------------------------------


def test_steps_of_any_kind_run_at_the_same_time(modules: Callable[[str, str], ModuleType]) -> None:
    """Activities, timers and events too; tasks that are complete when they are waited for; a step without any."""
    in_parallel = modules("05", "hosting.parallel").in_parallel

    def act(context: Any) -> Generator[Any, Any, str]:
        first = yield context.call_activity("first")
        yield context.wait_for_external_event("Kept")
        return f"{first}, {(yield context.call_activity('second'))}"

    def wait(context: Any) -> Generator[Any, Any, str]:
        yield context.create_timer(timedelta(seconds=3))
        return "waited"

    def nothing() -> Generator[Any, Any, int]:
        return 7
        yield

    def orchestrator(context: Any, _: Any) -> Generator[Any, Any, Any]:
        return (yield from in_parallel(context, act=act(context), wait=wait(context), nothing=nothing()))

    double = OrchestrationDouble(orchestrator)
    assert json.loads(double.shown) == {"nothing": 7}
    double.raise_event("Kept")
    double.finish_activity("one", "first")
    assert double.fire_timer() == 3
    double.finish_activity("two", "second")
    assert list(double.output.items()) == [("act", "one, two"), ("wait", "waited"), ("nothing", 7)]


def test_a_step_sees_the_failure_of_its_task_and_an_error_in_the_code_is_not_waited_with(
    modules: Callable[[str, str], ModuleType],
) -> None:
    in_parallel = modules("05", "hosting.parallel").in_parallel

    def careful(context: Any) -> Generator[Any, Any, str]:
        try:
            yield context.call_activity("careful")
        except Exception as error:
            return f"seen: {error}"
        return "not seen"

    def careless(context: Any) -> Generator[Any, Any, None]:
        yield context.call_activity("careless")
        yield context.call_activity("wrong")
        raise ZeroDivisionError

    def orchestrator(context: Any, _: Any) -> Generator[Any, Any, Any]:
        return (yield from in_parallel(context, careful=careful(context), careless=careless(context)))

    double = OrchestrationDouble(orchestrator)
    double.break_call(double.expect(ACTIVITY, "careless"), RuntimeError("no disk"))
    assert not double.done
    double.break_call(double.expect(ACTIVITY, "careful"), RuntimeError("no net"))
    assert str(double.failure) == "no disk"
    assert json.loads(double.shown) == {"careful": "seen: no net"}

    double = OrchestrationDouble(orchestrator)
    double.finish_activity(None, "careless")
    double.finish_activity(None, "wrong")
    assert isinstance(double.failure, ZeroDivisionError)


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
    assert "Question: What is temperature?" in client.output
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


# What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500])
def test_one_that_recovers(status: int, experts: Sample, model: ScriptedModel) -> None:
    model.fail(status, times=2, headers=NO_RETRY, matches=is_for("chemistry"))  # two attempts
    experts.start_worker()
    assert_both_answer(experts.run_client())
    assert (asked(model, "physics"), asked(model, "chemistry")) == (1, 3)


def test_a_model_that_is_away_is_waited_for_and_what_has_arrived_is_printed(
    experts: Sample, model: ScriptedModel
) -> None:
    model.fail(401, "wrong key", headers=NO_RETRY, matches=is_for("chemistry"))
    experts.start_worker()
    client = experts.start_client()
    client.wait_for(f"Physicist: {TO_A_PHYSICIST}")
    eventually(lambda: "ChemistAgent: " in client.errors and "wrong key" in client.errors, "the progress line says why")
    model.heal()
    assert_both_answer(client)
    assert client.output.count("Physicist: ") == client.output.count("Question: ") == 1
    assert asked(model, "physics") == 1


def test_one_that_fails_for_good(experts: Sample, model: ScriptedModel) -> None:
    model.say("", matches=is_for("chemistry"))
    worker = experts.start_worker()
    client = experts.run_client()
    assert_fails(client, 1, "ChemistAgent: ", "empty")
    assert "PhysicistAgent: " not in client.errors
    assert f"Physicist: {TO_A_PHYSICIST}" in client.output, "the answer that is there is shown"
    state = state_of(experts, instance_of(client))
    assert state.runtime_status.name == "FAILED"
    shown = json.loads(str(state.get_custom_status()).partition("\n")[2])
    assert [name for name in shown if shown[name].startswith(TO_A_PHYSICIST)] == ["physicist"]
    assert (asked(model, "physics"), asked(model, "chemistry")) == (1, 4)
    assert "Traceback" not in worker.errors

    later = experts.run_client("--instance", instance_of(client))
    assert_fails(later, 1, "ChemistAgent: ", "empty")
    assert f"Physicist: {TO_A_PHYSICIST}" in later.output


def test_a_rejected_call_is_made_once(experts: Sample, model: ScriptedModel) -> None:
    model.fail(400, "content filter", matches=is_for("physics"))
    experts.start_worker()
    client = experts.run_client()
    assert_fails(client, 1, "PhysicistAgent: ", "content filter")
    assert TO_A_CHEMIST in client.output
    assert (asked(model, "physics"), asked(model, "chemistry")) == (1, 1)


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(experts: Sample, model: ScriptedModel) -> None:
    model.say("\x1b[2Jred\u202eder")
    experts.start_worker()
    client = experts.run_client()
    assert client.wait() == 0, client.errors
    assert "Physicist: [2Jredder" in client.output
    assert "\x1b" not in client.output


def test_an_empty_question(experts: Sample) -> None:
    experts.start_worker()
    assert_fails(experts.run_client(""), 1, "Question")


def test_a_question_for_what_was_started_already(experts: Sample) -> None:
    assert_fails(experts.run_client("--instance", "x", "What is heat?"), 2, "--instance")
