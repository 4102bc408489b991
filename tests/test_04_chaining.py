"""Sample 04: two calls of one agent in one conversation, whatever happens in between."""

import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT, Process, Sample, Start, eventually
from durabletask.client import EntityQuery
from orchestration_double import AGENT, OrchestrationDouble
from orchestrations import assert_fails, complaints, instance_of, scheduler_client, state_of
from scripted_model import ScriptedModel

DRAFT = "Learning something new every day makes life better."
IMPROVED = "Every day you dare to learn something new, you open a door that nobody can ever close again."
STEPS = ["Write a concise", "Improve"]
NO_RETRY = {"x-should-retry": "false"}  # tells the model's SDK to leave retrying to the orchestration

# worker.py, in which minutes are shorter.
HASTY_WORKER = """
import os, sys
from datetime import timedelta
sys.path.insert(0, os.getcwd())
import worker
from hosting import agent_step
from hosting.program import run
agent_step.LONGEST_PAUSE = timedelta(seconds={longest_pause})
agent_step.NO_ANSWER = timedelta(seconds={no_answer})
run(worker.main)
"""


@pytest.fixture
def chain(sample: Callable[[str], Sample]) -> Sample:
    return sample("04")


@pytest.fixture
def orchestrator(modules: Callable[[str, str], ModuleType]) -> Callable[..., Any]:
    return modules("04", "orchestration").single_agent_chaining_orchestration


@pytest.fixture
def hasty_worker(chain: Sample, start: Start) -> Callable[..., Process]:
    """Starts a worker whose longest pause, and time without an answer, are so many seconds."""

    def start_it(longest_pause: float = 300, no_answer: float = 600, **settings: str) -> Process:
        program = HASTY_WORKER.format(longest_pause=longest_pause, no_answer=no_answer)
        worker = start(sys.executable, "-c", program, cwd=chain.folder, env=chain.environment(**settings))
        worker.wait_for("Worker ready")
        return worker

    return start_it


def of_step(step: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a request is for this step."""
    return lambda request: step in str(request["messages"][-1]["content"])


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
    assert (double.headline, double.shown) == ("asking WriterAgent", "The sea is wide.")
    double.answer("The sea is wider than any worry.")
    assert double.output == "The sea is wider than any worry."


@pytest.mark.parametrize("topic", [None, "", "  "])
def test_without_a_topic_it_is_about_learning(topic: str | None, orchestrator: Callable[..., Any]) -> None:
    assert "about learning" in OrchestrationDouble(orchestrator, topic).expect(AGENT).input


@pytest.mark.parametrize("topic", [7, {"topic": "sea"}, "x" * 501])
def test_a_topic_that_is_none_fails(topic: Any, orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator, topic)
    assert "The input is not a valid Topic" in str(double.failure)
    assert not double.calls


def test_a_second_call_that_fails_does_not_repeat_the_first(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator)
    double.answer(DRAFT)
    double.fail("The model failed (500)")
    assert double.shown == DRAFT
    double.fire_timer()
    assert double.expect(AGENT).input == f"Improve this sentence, in under 25 words: {DRAFT}"
    double.answer(IMPROVED)
    assert double.output == IMPROVED
    assert len(double.asked) == 3


def test_a_call_that_is_rejected_fails_it(orchestrator: Callable[..., Any]) -> None:
    double = OrchestrationDouble(orchestrator)
    double.fail("The model rejects the request (400)", "ModelRejected")
    assert str(double.failure) == "WriterAgent: The model rejects the request (400)"


def test_the_readme_shows_how_to_test_it(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    (origin,) = ROOT.glob("04_*")
    shutil.copytree(origin, folder, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    (block,) = [
        block
        for block in re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)
        if "def test_" in block
    ]
    (folder / "test_orchestration.py").write_text(block)
    tests = start(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert tests.wait() == 0, tests.output + tests.errors
    assert "1 passed" in tests.output


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
        for topic in (None, ""):
            instance = client.schedule_new_orchestration("single_agent_chaining_orchestration", input=topic)
            state = client.wait_for_orchestration_completion(instance)
            assert state
            assert state.get_output() == IMPROVED


def test_worker_and_client_in_one_process(chain: Sample) -> None:
    both = chain.run_client(program="sample.py")
    assert both.wait() == 0, both.errors
    assert IMPROVED in both.output
    assert complaints(both) == ""


# A model that is away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_fifty_failures_and_then_success(
    step: str, chain: Sample, model: ScriptedModel, hasty_worker: Callable[..., Process]
) -> None:
    model.fail(503, times=50, headers=NO_RETRY, matches=of_step(step))
    hasty_worker(longest_pause=0.01)
    client = chain.run_client()
    assert client.wait() == 0, client.errors
    assert f"Improved:      {IMPROVED}" in client.output
    assert len(model.asked(step)) == 51
    last = model.asked(step)[-1]
    assert sum(step in text for text in texts(last)) == 1, "the model reads its question once"
    if step == "Improve":
        assert texts(last) == [f"Improve this sentence, in under 25 words: {DRAFT}"]
    else:
        assert texts(model.requests[-1]) == [*texts(last), DRAFT, "Improve that sentence, in under 25 words."]
    with scheduler_client(chain) as scheduler:
        conversations = list(scheduler.get_all_entities(EntityQuery(instance_id_starts_with="@dafx-writeragent")))
    assert len(conversations) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_is_waited_out(status: int, chain: Sample, model: ScriptedModel) -> None:
    """The worker is started again, with the right one; the orchestration waits for its next attempt meanwhile."""
    model.fail(status, "Access denied due to invalid subscription key", matches=of_step("Improve"))
    worker = chain.start_worker()
    client = chain.start_client()
    seen = (
        rf"… WriterAgent: The model failed \({status}\): Access denied due to invalid subscription key.* Attempt \d at "
    )
    eventually(lambda: re.search(seen, client.errors), "the client says what is wrong, and when it is tried again")
    instance = instance_of(client)
    eventually(lambda: "Access denied" in str(state_of(chain, instance).get_custom_status()), "and the custom status")
    worker.stop()
    model.heal()
    chain.start_worker()
    with scheduler_client(chain) as scheduler:
        scheduler.raise_orchestration_event(instance, "TryNow")
    assert client.wait() == 0, client.errors
    assert f"First draft:   {DRAFT}\nImproved:      {IMPROVED}\n" in client.output
    assert len(model.asked("Write a concise")) == 1


def test_try_now_ends_a_pause(chain: Sample, model: ScriptedModel, hasty_worker: Callable[..., Process]) -> None:
    model.fail(429, "busy", times=7, headers=NO_RETRY)
    hasty_worker()
    client = chain.start_client()
    instance = instance_of(client)
    with scheduler_client(chain) as scheduler:
        for attempt in range(2, 9):  # without it, the pauses are 127 s
            eventually(
                lambda attempt=attempt: f"Attempt {attempt} at" in str(state_of(chain, instance).get_custom_status()),
                f"the pause before attempt {attempt}",
            )
            scheduler.raise_orchestration_event(instance, "TryNow")
    assert client.wait() == 0, client.errors
    assert len(model.requests) == 9


# An agent that is not there ---------------------------------------------------------------------------------------

QUESTION = r"… waiting for WriterAgent since [-\d]+ \d\d:\d\d UTC: does a running worker host it\?"


def test_a_worker_that_was_stopped_for_long_is_waited_for_and_asks_once(
    chain: Sample, model: ScriptedModel, hasty_worker: Callable[..., Process]
) -> None:
    """Another worker runs the orchestration meanwhile, and has no such agent."""
    model.held = threading.Event()
    worker = hasty_worker(no_answer=1)
    client = chain.start_client()
    eventually(lambda: model.requests, "the model is asked")
    eventually(lambda: re.search(QUESTION, client.errors), "the client asks whether a worker hosts the agent")
    worker.kill()
    model.requests.clear()
    model.held.set()
    chain.start_worker()
    assert client.wait() == 0, client.errors
    assert len(model.requests) == 2, "each step once"
    assert len(texts(model.requests[-1])) == 3


def test_a_misspelled_name_is_said_and_waited_for(chain: Sample, model: ScriptedModel, start: Start) -> None:
    program = HASTY_WORKER.format(longest_pause=1, no_answer=0.5).replace(
        "run(worker.main)", "worker.create_writer = rename(worker.create_writer)\nrun(worker.main)"
    )
    rename = "def rename(create):\n    def renamed():\n        agent = create()\n        agent.name = 'Writer'\n"
    rename += "        return agent\n    return renamed\n"
    worker = start(sys.executable, "-c", rename + program, cwd=chain.folder, env=chain.environment())
    worker.wait_for("Worker ready")
    client = chain.start_client()
    eventually(lambda: re.search(QUESTION, client.errors), "the client asks whether a worker hosts the agent")
    worker.stop()
    chain.start_worker()
    assert client.wait() == 0, client.errors
    assert len(model.requests) == 2


# What goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 422])
def test_a_rejected_call_is_made_once(status: int, chain: Sample, model: ScriptedModel) -> None:
    model.fail(status, "This is too long")
    worker = chain.start_worker()
    client = chain.run_client()
    assert_fails(client, 1, f"WriterAgent: The model rejects the request ({status}): This is too long")
    assert complaints(client).count("\n") == 1
    assert state_of(chain, instance_of(client)).runtime_status.name == "FAILED"
    assert len(model.requests) == 1
    worker.stop()
    assert "Traceback" not in worker.errors
    assert_fails(chain.run_client("--instance", instance_of(client)), 1, "This is too long")


def test_a_content_filter_fails_it(chain: Sample, model: ScriptedModel) -> None:
    model.say("An", finish_reason="content_filter")
    chain.start_worker()
    assert_fails(chain.run_client(), 1, "WriterAgent: The model's content filter withheld the answer.")
    assert len(model.requests) == 1


def test_four_unusable_answers_fail_it(chain: Sample, model: ScriptedModel) -> None:
    model.say("I can not", times=1, said_with={"refusal": "I will not."})
    model.say("")
    chain.start_worker()
    client = chain.run_client()
    assert_fails(client, 1, "WriterAgent: The model's answer is empty.")
    assert "Improved:" not in client.output
    assert len(model.requests) == 4


@pytest.mark.parametrize("topic", ["", "x" * 501])
def test_an_empty_topic_is_the_default_and_one_that_is_too_long_fails(topic: str, chain: Sample) -> None:
    chain.start_worker()
    client = chain.run_client(topic)
    if topic:
        assert_fails(client, 1, "The input is not a valid Topic. String should have at most 500 characters")
    else:
        assert client.wait() == 0
        assert IMPROVED in client.output


def test_a_topic_for_what_was_started_already(chain: Sample) -> None:
    assert_fails(chain.run_client("--instance", "x", "the sea"), 2, "--instance")
