"""Sample 02 end to end: who is asked what, and in which conversation."""

import json
import re
import signal
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


def key_of(client: Process) -> str:
    """The key that the client prints before anything else."""
    match = re.match(r"Conversation (\w+)\n", client.output)
    assert match, client.output + client.errors
    return match[1]


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
    assert hole[0] == "Why is the sky blue?", "the physicist's conversation continues"
    assert not any("acid" in text for text in hole), "and knows nothing of the chemist's"
    assert f"To continue:\n  python client.py --session {key_of(client)} " in client.output


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


def test_a_question_that_is_neither_asks_no_expert(experts: Sample, model: ScriptedModel) -> None:
    experts.start_worker()
    client = experts.run_client("Who won the chess world championship?")
    assert client.wait() == 0
    assert "No expert for this" in client.output
    assert all(is_routing(request) for request in model.requests)


def test_a_named_agent_is_asked_without_the_router(experts: Sample, model: ScriptedModel) -> None:
    experts.start_worker()
    client = experts.run_client("--agent", "ChemistAgent", "What is temperature?")
    assert client.wait() == 0, client.errors
    ((name, answer),) = answers(client)
    assert name == "ChemistAgent"
    assert answer.startswith("To a chemist")
    assert not any(is_routing(request) for request in model.requests)


def test_another_process_continues_the_conversations_by_their_key(experts: Sample) -> None:
    experts.start_worker()
    key = key_of(experts.run_client("Why does iron rust?"))
    second = experts.run_client("--session", key, "Please explain that more simply.")
    assert second.wait() == 0
    assert second.errors == ""
    (_, routing), (name, _) = answers(second)
    assert (name, routing.partition(".")[0]) == ("ChemistAgent", "ChemistAgent")
    assert key_of(second) == key

    third = experts.run_client("--agent", "ChemistAgent", "--session", key, "What did I ask first?")
    assert third.errors == ""
    assert "Why does iron rust?" in answers(third)[0][1]
    assert f"--agent ChemistAgent --session {key} " in third.output


def test_a_conversation_is_a_key_and_an_agent(experts: Sample) -> None:
    experts.start_worker()
    key = key_of(experts.run_client("Why does iron rust?"))
    client = experts.run_client("--agent", "PhysicistAgent", "--session", key, "What did I ask first?")
    assert client.wait() == 0
    assert f"{key} of PhysicistAgent is not known here" in client.errors
    assert "iron" not in client.output
    assert "not known here" in experts.run_client("--session", "tuesday", "Why does iron rust?").errors


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
    ],
)
def test_an_answer_that_is_not_a_routing_is_an_error_and_no_guess(
    said: str, experts: Sample, model: ScriptedModel
) -> None:
    model.say(said, matches=is_routing)
    experts.start_worker()
    client = experts.run_client("Why does iron rust?")
    assert_one_line(client, 1, "RouterAgent did not choose an expert", said[:20])
    assert all(is_routing(request) for request in model.requests)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"finish_reason": "length"}, "cut off at the length"),
        ({"said_with": {"content": None, "refusal": "I will not."}}, "The model refuses: I will not."),
        ({"said_with": {"content": " "}}, "empty"),
    ],
)
def test_no_answer_is_an_error_and_the_conversation_continues(
    said: dict[str, Any], problem: str, experts: Sample, model: ScriptedModel
) -> None:
    model.say('{"agent": "ChemistAgent", "reason": "Rust', matches=is_routing, **said)
    experts.start_worker()
    client = experts.run_client("Why does iron rust?")
    assert_one_line(client, 1, problem)
    model.heal()
    again = experts.run_client("--session", key_of(client), "Why does iron rust?")
    assert again.wait() == 0, again.errors
    assert answers(again)[-1][0] == "ChemistAgent"


def test_what_a_model_writes_does_not_steer_the_terminal(experts: Sample, model: ScriptedModel) -> None:
    model.say(json.dumps({"agent": "ChemistAgent", "reason": "\x1b[2Jrust\u202e"}), times=1, matches=is_routing)
    model.say("It \x1b[31mrusts\x07.", times=1)
    experts.start_worker()
    client = experts.run_client("Why does iron rust?")
    assert answers(client) == [("RouterAgent", "ChemistAgent. [2Jrust"), ("ChemistAgent", "It [31mrusts.")]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--agent", "BiologistAgent", "What is life?"], "'BiologistAgent'.*RouterAgent"),
        (["--agent", "chemistagent", "What is life?"], "ChemistAgent"),
        (["--agent", "", "What is life?"], "ChemistAgent"),
        ([" "], "question"),
        (["--session", "abc"], "question"),
        (["--session", "", "Hello"], "--session"),
        (["--session", "a@b", "Hello"], "--session"),
        (["--timeout", "-3", "Hello"], "--timeout"),
        (["--timeout", "nan", "Hello"], "--timeout"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], named: str, experts: Sample) -> None:
    client = experts.run_client(*arguments, ENDPOINT="http://127.0.0.1:9")
    assert client.wait() == 2
    assert client.output == ""
    assert re.match(f"client.py: error: .*{named}", client.errors.splitlines()[-1])


def test_no_worker(experts: Sample) -> None:
    client = experts.run_client("--timeout", "0.5", "Why does iron rust?")
    assert_one_line(client, 1, "No answer from RouterAgent within 0.5 s", "python worker.py", key_of(client))


def test_ctrl_c_says_how_to_come_back(experts: Sample, model: ScriptedModel) -> None:
    model.held = threading.Event()
    experts.start_worker()
    client = experts.start_client("Why does iron rust?")
    eventually(lambda: model.requests, "the router's model is asked")
    client.signal(signal.SIGINT)
    assert client.wait() == 130
    assert client.errors == ""
    assert f"python client.py --session {key_of(client)} " in client.output


def test_an_answer_that_does_not_fit_is_not_said_to_be_kept(experts: Sample, model: ScriptedModel) -> None:
    experts.start_worker()
    chemist = ["--agent", "ChemistAgent"]
    model.say("It is a long story. " * 30_000, times=1)
    key = key_of(experts.run_client(*chemist, "Why does iron rust?"))
    model.say("It is a long story. " * 25_000, times=1)
    client = experts.run_client(*chemist, "--session", key, "--timeout", "3", "And copper?")
    assert client.wait() == 1
    assert "lost if its answer does not fit into 1 MB" in client.errors
    assert "kept" not in client.errors
    again = experts.run_client(*chemist, "--session", key, "What did I ask first?")
    assert again.wait() == 0, again.errors
    assert "Why does iron rust?" in answers(again)[0][1]


def test_a_model_that_fails_the_expert_is_said(experts: Sample, model: ScriptedModel) -> None:
    model.fail(400, "too hot", matches=lambda request: not is_routing(request))
    experts.start_worker()
    client = experts.run_client("Why does iron rust?")
    assert_one_line(client, 1, "too hot")
    assert "RouterAgent: ChemistAgent" in client.output


def test_worker_and_client_in_one_process(experts: Sample) -> None:
    client = experts.run_client("Why does iron rust?", program="sample.py")
    assert client.wait() == 0, client.errors
    assert client.errors == ""
    assert answers(client)[-1][0] == "ChemistAgent"
