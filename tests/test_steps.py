"""steps.py, which samples 04 to 07 share: an agent's step without any server, and a client's waiting with sample 04."""

import io
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import Sample, eventually
from orchestration_double import AGENT, TIMER, OrchestrationDouble
from orchestrations import assert_fails, instance_of, scheduler_client, state_of
from pydantic import BaseModel, Field
from scripted_model import ScriptedModel


class Verdict(BaseModel):
    is_spam: bool
    reason: str = Field(min_length=1)


@pytest.fixture
def steps(modules: Callable[[str, str], ModuleType]) -> ModuleType:
    return modules("04", "steps")


@pytest.fixture
def asking(steps: ModuleType) -> Callable[..., OrchestrationDouble]:
    """Runs an orchestrator of one step."""
    from agent_framework_durabletask import DurableAIAgentOrchestrationContext

    def run(**options: Any) -> OrchestrationDouble:
        def orchestrator(context: Any, _: Any) -> Generator[Any, Any, Any]:
            agent = DurableAIAgentOrchestrationContext(context).get_agent("Judge")
            if options.pop("in_session", False):
                options["session"] = agent.create_session()
            return (yield from steps.ask(context, agent, "Judge this.", **options))

        return OrchestrationDouble(orchestrator)

    return run


# The step of an orchestrator --------------------------------------------------------------------------------------


def test_an_answer_is_the_text(asking: Callable[..., OrchestrationDouble]) -> None:
    double = asking()
    assert double.expect(AGENT, "Judge").input == "Judge this."
    double.answer("  It is fine.\n")
    assert double.output == "It is fine."


def test_a_structured_answer_is_validated(asking: Callable[..., OrchestrationDouble]) -> None:
    double = asking(expect=Verdict)
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
def test_an_answer_that_does_not_validate_is_asked_for_again_then_failed(
    answer: str, words: list[str], asking: Callable[..., OrchestrationDouble]
) -> None:
    double = asking(expect=Verdict)
    pauses = []
    for _ in range(3):
        double.answer(answer)
        pauses.append(double.fire_timer())
    double.answer(answer)
    assert str(double.failure).startswith("Judge: ")
    assert all(word in str(double.failure) for word in words)
    assert pauses == sorted(set(pauses)), "they grow"
    assert double.output is None


def test_a_failed_attempt_is_made_again_in_a_new_conversation(asking: Callable[..., OrchestrationDouble]) -> None:
    double = asking()
    double.fail("The model failed (500)")
    double.fire_timer()
    double.answer("It is fine.")
    first, second = [call.conversation for call in double.calls if call.kind == AGENT]
    assert first != second
    assert double.output == "It is fine."


def test_in_a_session_it_is_made_again_in_the_same(asking: Callable[..., OrchestrationDouble]) -> None:
    double = asking(in_session=True)
    double.fail("The model failed (500)")
    double.fire_timer()
    double.answer("It is fine.")
    assert len({call.conversation for call in double.calls if call.kind == AGENT}) == 1


def test_a_rejected_call_is_not_made_again(asking: Callable[..., OrchestrationDouble], steps: ModuleType) -> None:
    double = asking()
    double.fail("The model rejects the request (401): no such key", "ModelRejected")
    assert isinstance(double.failure, steps.StepFailed)
    assert str(double.failure) == "Judge: The model rejects the request (401): no such key"
    assert [call.kind for call in double.calls] == [AGENT]


def test_a_step_is_given_up_with_the_models_last_words(asking: Callable[..., OrchestrationDouble]) -> None:
    double = asking()
    for number in range(1, 4):
        double.fail(f"failure {number}")
        double.fire_timer()
    double.fail("failure 4")
    assert str(double.failure) == "Judge: failure 4"
    assert [call.kind for call in double.calls] == [AGENT, TIMER] * 3 + [AGENT]


def test_failed_attempts_are_logged_and_not_in_a_replay(
    asking: Callable[..., OrchestrationDouble],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with caplog.at_level(logging.WARNING):
        asking().fail("The model failed (500)")
        assert "Judge: The model failed (500)" in caplog.text
        caplog.clear()
        monkeypatch.setattr(OrchestrationDouble, "is_replaying", True)
        asking().fail("The model failed (500)")
        assert caplog.text == ""


def test_an_input_that_is_not_valid_names_the_field(steps: ModuleType) -> None:
    assert steps.read_input(Verdict, {"is_spam": False, "reason": "x"}) == Verdict(is_spam=False, reason="x")
    with pytest.raises(ValueError, match="reason: Field required"):
        steps.read_input(Verdict, {"is_spam": False})
    with pytest.raises(ValueError, match="Verdict: Input should be"):
        steps.read_input(Verdict, None)


# A client's waiting -----------------------------------------------------------------------------------------------


@pytest.fixture
def chain(sample: Callable[[str], Sample]) -> Sample:
    return sample("04")


def test_started_without_waiting_and_come_back_to(chain: Sample, model: ScriptedModel) -> None:
    started = chain.run_client("--no-wait", "teamwork")
    assert started.wait() == 0
    instance = started.output.strip()
    assert started.output == f"{instance}\n", "the id alone, for a script"
    assert f"python client.py --instance {instance}" in started.errors

    chain.start_worker()
    for _ in range(2):  # while it runs, and when it has ended
        back = chain.run_client("--instance", instance)
        assert back.wait() == 0
        assert "together" in back.output
    assert len(model.requests) == 2


def test_an_instance_that_is_not_known(chain: Sample) -> None:
    assert_fails(chain.run_client("--instance", "nobody"), 2, "nobody", chain.settings["TASKHUB"])


def test_an_instance_of_another_orchestration(chain: Sample) -> None:
    with scheduler_client(chain) as client:
        instance = client.schedule_new_orchestration("something_else")
    assert_fails(chain.run_client("--instance", instance), 2, instance, "single_agent_chaining_orchestration")


def test_no_result_in_time(chain: Sample, model: ScriptedModel) -> None:
    client = chain.run_client("--timeout", "0.5")
    instance = instance_of(client)
    come_back = f"python client.py --instance {instance}"
    assert_fails(client, 1, "No result within 0.5 s", "python worker.py", come_back)

    model.held = threading.Event()
    chain.start_worker()
    eventually(lambda: model.requests, "the model is asked")
    assert_fails(chain.run_client("--instance", instance, "--timeout", "0"), 1, "running", come_back)
    model.held.set()
    assert chain.run_client("--instance", instance).wait() == 0


def test_ctrl_c_leaves_the_work_going_on(chain: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    chain.start_worker()
    client = chain.start_client()
    instance = instance_of(client)
    eventually(lambda: model.requests, "the model is asked")
    client.signal(signal.SIGINT)
    assert_fails(client, 130, "goes on", f"python client.py --instance {instance}")
    model.held.set()
    assert chain.run_client("--instance", instance).wait() == 0


def test_a_result_that_is_there_comes_without_a_progress_line(chain: Sample) -> None:
    chain.start_worker()
    instance = instance_of(chain.run_client())
    client = chain.run_client("--instance", instance)
    assert client.wait() == 0
    assert client.errors == ""


def test_a_long_wait_shows_its_progress(chain: Sample, model: ScriptedModel) -> None:
    client = chain.start_client()
    eventually(lambda: "not begun" in client.errors, "it says that no worker is there")
    model.held = threading.Event()
    chain.start_worker()
    eventually(lambda: "running" in client.errors, "it says that it runs")
    model.held.set()
    assert client.wait() == 0
    assert client.errors.count("\n") < 6


def test_a_suspended_orchestration_is_called_so(chain: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    chain.start_worker()
    instance = chain.run_client("--no-wait").output.strip()
    eventually(lambda: model.requests, "the model is asked")
    with scheduler_client(chain) as scheduler:
        scheduler.suspend_orchestration(instance)
        eventually(lambda: state_of(chain, instance).runtime_status.name == "SUSPENDED", "suspended")
        assert_fails(chain.run_client("--instance", instance, "--timeout", "0"), 1, "suspended")
        scheduler.resume_orchestration(instance)
    model.held.set()
    assert chain.run_client("--instance", instance).wait() == 0


def test_a_terminated_orchestration_is_called_so(chain: Sample) -> None:
    client = chain.start_client()
    instance = instance_of(client)
    with scheduler_client(chain) as scheduler:
        scheduler.terminate_orchestration(instance, output="enough")
    chain.start_worker()
    assert_fails(client, 1, "terminated", "enough", instance)


@pytest.fixture
def half_way(chain: Sample, model: ScriptedModel) -> str:
    """An orchestration that shows its draft, while the model is held at the second call."""
    chain.start_worker()
    gate = model.held = threading.Event()
    instance = chain.run_client("--no-wait").output.strip()
    eventually(lambda: model.requests, "the first call")
    model.held = threading.Event()
    gate.set()
    return instance


def test_a_change_of_the_custom_status_is_told_while_waiting(
    half_way: str, chain: Sample, model: ScriptedModel, steps: ModuleType
) -> None:
    told: list[Any] = []

    def on_change(state: Any) -> None:
        told.append(state.get_custom_status())
        assert model.held
        model.held.set()

    with scheduler_client(chain) as client:
        state = steps.result_of(client, half_way, 60, on_change)
    assert told == ["Learning something new every day makes life better."]
    assert state.get_output()


def test_what_a_person_takes_to_answer_is_not_counted(
    half_way: str,
    chain: Sample,
    model: ScriptedModel,
    steps: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    thought = 0.0

    def on_change(_: Any) -> None:
        nonlocal thought
        thought += 1000
        assert model.held
        model.held.set()

    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + thought, sleep=time.sleep))
    monkeypatch.setattr(steps, "QUIET_SECONDS", 500.0)
    with scheduler_client(chain) as client:
        assert steps.result_of(client, half_way, 60, on_change).get_output()
    assert thought
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_progress_is_one_line(
    chain: Sample, steps: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(steps, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(steps, "LOOK_SECONDS", 0.05)
    instance = chain.run_client("--no-wait").output.strip()
    with scheduler_client(chain) as client, pytest.raises(steps.AgentError):
        steps.result_of(client, instance, 0.5)
    assert "\n" not in terminal.getvalue()
    assert terminal.getvalue().count("not begun") > 1
    assert terminal.getvalue().endswith("\r"), "and leaves nothing behind"
