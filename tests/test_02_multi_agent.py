"""Sample 02 end to end: who is asked what, and in which conversation."""

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Process, Sample, eventually
from scripted_model import ScriptedModel

EXPERTS = ["PhysicistAgent", "ChemistAgent"]


@pytest.fixture
def experts(sample: Callable[[str], Sample]) -> Sample:
    return sample("02")


def answers(client: Process) -> list[tuple[str, str]]:
    """Who said what, in order."""
    return re.findall(r"^(\w+Agent): (.*)$", client.output, re.MULTILINE)


def keys(client: Process) -> dict[str, str]:
    """The conversations that the client tells how to continue, by agent."""
    return dict(re.findall(r"--agent (\w+) --session (\w+)", client.output))


def is_routing(request: dict[str, Any]) -> bool:
    return "response_format" in request


def texts(request: dict[str, Any]) -> list[str]:
    """The messages of a request to the model, without the agent's instructions."""
    return [message["content"] for message in request["messages"] if message["role"] != "system"]


def assert_one_line(process: Process, code: int, *words: str) -> None:
    """The program ended with that code, and one line on stderr that says this."""
    assert process.wait() == code, process.output + process.errors
    assert process.errors.count("\n") == 1, process.errors
    for word in words:
        assert word in process.errors


def test_the_demonstration_asks_each_expert_its_own_questions(experts: Sample, model: ScriptedModel) -> None:
    experts.start_worker()
    client = experts.run_client()
    assert client.wait() == 0, client.errors
    assert client.errors == ""

    assert [name for name, _ in answers(client) if name != "RouterAgent"] == [
        "PhysicistAgent",
        "ChemistAgent",
        "ChemistAgent",
        "PhysicistAgent",
    ]
    assert "No expert for this" in client.output.partition("Who wrote Hamlet?")[2]
    reasons = [text for name, text in answers(client) if name == "RouterAgent"]
    assert len(reasons) == 5
    assert "“sky”" in reasons[0]

    sky, _, simpler, hole = (texts(request) for request in model.requests if not is_routing(request))
    assert sky == ["Why is the sky blue?"]
    assert simpler[0] == "What makes an acid an acid?", "a follow-up has its question before it"
    assert simpler[-1] == "Please explain that more simply."
    assert hole[0] == "Why is the sky blue?", "the physicist's conversation goes on"
    assert not any("acid" in text for text in hole), "and knows nothing of the chemist's"
    assert set(keys(client)) == set(EXPERTS)


@pytest.mark.parametrize(
    ("question", "expert"),
    [
        ("What is entropy, in physics?", "PhysicistAgent"),
        ("Why does iron rust?", "ChemistAgent"),
        ("How does soap clean?", "ChemistAgent"),
        ("How fast does a satellite move in its orbit?", "PhysicistAgent"),
    ],
)
def test_one_question_is_routed_by_its_topic(question: str, expert: str, experts: Sample) -> None:
    experts.start_worker()
    client = experts.run_client(question)
    assert client.wait() == 0, client.errors
    (_, routing), (name, answer) = answers(client)
    assert routing.startswith(expert)
    assert name == expert
    assert answer
    assert list(keys(client)) == [expert]


def test_a_question_that_is_neither_asks_no_expert(experts: Sample, model: ScriptedModel) -> None:
    experts.start_worker()
    client = experts.run_client("Who won the chess world championship?")
    assert client.wait() == 0
    assert "No expert for this" in client.output
    assert all(is_routing(request) for request in model.requests)
    assert not keys(client)


def test_a_named_agent_is_asked_without_the_router(experts: Sample, model: ScriptedModel) -> None:
    experts.start_worker()
    client = experts.run_client("--agent", "ChemistAgent", "What is temperature?")
    assert client.wait() == 0, client.errors
    ((name, answer),) = answers(client)
    assert name == "ChemistAgent"
    assert answer.startswith("To a chemist")
    assert not any(is_routing(request) for request in model.requests)


def test_another_process_continues_an_experts_conversation(experts: Sample) -> None:
    experts.start_worker()
    first = experts.run_client("Why does iron rust?")
    key = keys(first)["ChemistAgent"]
    second = experts.run_client("--agent", "ChemistAgent", "--session", key, "What did I ask first?")
    assert second.wait() == 0
    assert second.errors == ""
    assert "Why does iron rust?" in answers(second)[0][1]
    assert keys(second) == {"ChemistAgent": key}


def test_a_key_belongs_to_one_agent(experts: Sample) -> None:
    experts.start_worker()
    key = keys(experts.run_client("Why does iron rust?"))["ChemistAgent"]
    client = experts.run_client("--agent", "PhysicistAgent", "--session", key, "What did I ask first?")
    assert client.wait() == 0
    assert f"{key} of PhysicistAgent is not known here" in client.errors
    assert "iron" not in client.output


def test_the_router_is_asked_for_a_structure(experts: Sample, model: ScriptedModel) -> None:
    experts.start_worker()
    experts.run_client("Why does iron rust?")
    request = next(request for request in model.requests if is_routing(request))
    schema = request["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["agent"]["enum"] == [*EXPERTS, "none"]
    assert [is_routing(request) for request in model.requests] == [True, False]


@pytest.mark.parametrize(
    "said",
    [
        "The chemist, I would say.",
        json.dumps({"agent": "BiologistAgent", "reason": "It knows."}),
        json.dumps({"agent": "ChemistAgent"}),
        "",
    ],
)
def test_a_routing_that_is_none_is_an_error_and_no_guess(said: str, experts: Sample, model: ScriptedModel) -> None:
    model.say(said, matches=is_routing)
    experts.start_worker()
    client = experts.run_client("Why does iron rust?")
    assert_one_line(client, 1, "RouterAgent did not choose an expert", said[:20])
    assert all(is_routing(request) for request in model.requests)


def test_an_unknown_agent_is_refused_at_once(experts: Sample, model: ScriptedModel) -> None:
    for name in ("BiologistAgent", "chemistagent", ""):
        client = experts.run_client("--agent", name, "What is life?")
        assert_one_line(client, 2, f"no agent '{name}'", *EXPERTS, "RouterAgent")
        assert client.output == ""
    assert not model.requests


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([" "], "question is empty"),
        (["--session", "abc", "Hello"], "--agent"),
        (["--agent", "ChemistAgent", "--session", "", "Hello"], "key"),
        (["--agent", "ChemistAgent", "--session", "a@b", "Hello"], "key"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], named: str, experts: Sample) -> None:
    assert_one_line(experts.run_client(*arguments), 2, named)


def test_a_model_that_fails_the_expert_is_said(experts: Sample, model: ScriptedModel) -> None:
    model.fail(400, "too hot", matches=lambda request: not is_routing(request))
    experts.start_worker()
    client = experts.run_client("Why does iron rust?")
    assert_one_line(client, 1, "too hot")
    assert "RouterAgent: ChemistAgent" in client.output


def test_a_worker_killed_between_router_and_expert_is_replaced(experts: Sample, model: ScriptedModel) -> None:
    first = experts.start_worker()
    client = experts.start_client("Why does iron rust?")
    client.wait_for("RouterAgent: ChemistAgent")
    first.kill()
    experts.start_worker()
    assert client.wait() == 0, client.errors
    assert answers(client)[-1][0] == "ChemistAgent"


def test_a_worker_killed_while_the_router_thinks_is_replaced(experts: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    first = experts.start_worker()
    client = experts.start_client("Why does iron rust?")
    eventually(lambda: model.requests, "the router's model is asked")
    first.kill()
    experts.start_worker()
    eventually(lambda: len(model.requests) == 2, "it is asked again")
    model.held.set()
    assert client.wait() == 0, client.errors
    assert [name for name, _ in answers(client)] == ["RouterAgent", "ChemistAgent"]


def test_worker_and_client_in_one_process(experts: Sample) -> None:
    client = experts.run_client("Why does iron rust?", program="sample.py")
    assert client.wait() == 0, client.errors
    assert client.errors == ""
    assert answers(client)[-1][0] == "ChemistAgent"
