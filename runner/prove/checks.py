"""Judges a run by what it has left: is anything lost, doubled, paid again, wrong?"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runner.prove.cases import CLIENT, FROZEN_SCHEDULER, Case
from runner.prove.processes import Process
from runner.prove.stored import Journal, Stored, effects_in

if TYPE_CHECKING:
    from runner.prove.driver import Run

COUNTS = ("lost", "doubled", "paid", "wrong", "hung")


@dataclass
class Outcome:
    """What went wrong in a run, by kind; and the seconds from its successor's start to the result."""

    case: Case
    lost: int = 0
    doubled: int = 0  # effects, and results that were printed twice
    paid: int = 0  # calls of the model that had a stored answer, and were made again
    wrong: int = 0  # texts
    hung: int = 0
    seconds: float | None = None
    told: bool = False  # the model was away for longer than a direct question waits, and the client has said so
    problems: list[str] = field(default_factory=list)

    def add(self, kind: str, problem: str, times: int = 1) -> None:
        """Note a problem."""
        setattr(self, kind, getattr(self, kind) + times)
        self.problems.append(problem)


@dataclass(frozen=True)
class Before:
    """What there was when the process was killed."""

    stored: Stored
    journal: Journal
    effects: dict[str, tuple[int, int]]


def judge(run: "Run", before: Before, client: Process, outcome: Outcome) -> None:
    """Judge a run that has ended; `client` is the last one."""
    stored, journal = run.stored(), run.journal()
    if run.sample.questions:
        check_conversation(run, before, stored, outcome)
    else:
        check_orchestration(run, stored, outcome)
    check_answers(stored, journal, outcome)
    check_calls(before, journal, outcome)
    check_effects(run, before, outcome)
    check_client(run, stored, client, outcome)


def check_conversation(run: "Run", before: Before, stored: Stored, outcome: Outcome) -> None:
    """Each question that the scheduler had has one answer."""
    came_back = outcome.case.victim in (CLIENT, FROZEN_SCHEDULER) or outcome.told
    asked = len(before.stored.answers) if outcome.case.moment else run.step.asked - outcome.told
    accepted = [*run.sample.questions[:asked], *run.sample.comes_back_with] if came_back else run.sample.questions
    answered = Counter(call for call, answer in stored.answers if answer)
    for call in accepted:
        if not answered[call]:
            outcome.add("lost", f"no answer is stored to {call}")
    for call, times in answered.items():
        if times > 1:
            outcome.add("doubled", f"answered {times} times: {call}", times - 1)


def check_orchestration(run: "Run", stored: Stored, outcome: Outcome) -> None:
    """It has ended as it should, and its result is made of its agents' answers."""
    if run.sample.fails:
        if stored.status != "FAILED" or run.sample.fails not in str(stored.output):
            outcome.add("lost", f"{stored.status}, not failed as it should be: {stored.output}")
    elif stored.status != "COMPLETED":
        outcome.add("lost", f"the orchestration is {stored.status or 'gone'}: {stored.output}")
    elif not made_of(stored):
        outcome.add("wrong", f"the result {stored.output!r} is not what the agents said: {stored.texts}")


def made_of(stored: Stored) -> bool:
    """Whether the result is the last answer, or all of them, or has all that the last one says."""
    *_, last = stored.texts
    if isinstance(stored.output, str):
        return all(text in stored.output for text in parts(last))
    values = list(stored.output.values())
    return sorted(values) == sorted(stored.texts) or values == parts(last)


def parts(answer: str) -> list[str]:
    """The texts in an answer: itself, or the values of its JSON."""
    if not answer.startswith("{"):
        return [answer]
    return [value for value in json.loads(answer).values() if isinstance(value, str)]


def check_answers(stored: Stored, journal: Journal, outcome: Outcome) -> None:
    """Each answer is one that the model gave, whole."""
    for text in stored.texts:
        if text not in journal.answers.values():
            outcome.add("wrong", f"the model never said {text!r}")


def check_calls(before: Before, journal: Journal, outcome: Outcome) -> None:
    """No call is made again whose answer was stored."""
    finished = before.journal.finished(before.stored.texts)
    again = [call for number, call in journal.calls.items() if number not in before.journal.calls and call in finished]
    for _, said in again:
        outcome.add("paid", f"the model was asked again, though its answer was stored: {said!r}")


def check_effects(run: "Run", before: Before, outcome: Outcome) -> None:
    """Each effect is there once, and was not repeated."""
    effects, expected = effects_in(run.effects), run.sample.effects
    changed = [path for path, written in before.effects.items() if effects.get(path, written) != written]
    if len(effects) < expected:
        outcome.add("lost", f"{expected} effects were expected: {sorted(effects)}", expected - len(effects))
    if len(effects) > expected or changed:
        outcome.add(
            "doubled", f"effects: {sorted(effects)}, repeated: {changed}", len(effects) - expected + len(changed)
        )


def check_client(run: "Run", stored: Stored, client: Process, outcome: Outcome) -> None:
    """It has printed the result, once, and ended well."""
    if (code := client.wait()) != (1 if run.sample.fails else 0):
        outcome.add("lost", f"the client has ended with exit code {code}:\n{client.output}{client.errors}")
        return
    if run.sample.number == "03":
        if shown(client.output) != stored.texts[-1]:
            outcome.add("wrong", f"the client shows {shown(client.output)!r}, stored is {stored.texts[-1]!r}")
        return
    for text in printed(run, stored, client):
        times = client.output.count(text)
        if times > 1:
            outcome.add("doubled", f"the client has printed this {times} times: {text!r}", times - 1)
        elif not times:
            outcome.add("wrong", f"the client has not printed {text!r}, but:\n{client.output}")


def printed(run: "Run", stored: Stored, client: Process) -> list[str]:
    """What the last client has to print."""
    number, output = run.sample.number, stored.output
    if run.sample.fails:
        return []
    if number in ("01", "02"):
        asked = re.findall(r"^You: +(.*)$", client.output, re.MULTILINE)
        shown = [(agent, text) for (agent, said), text in stored.answers if said in asked and agent != "RouterAgent"]
        return [f"{agent}: {text}\n" for agent, text in shown]
    if number == "04":
        return [f"First draft:   {stored.texts[0]}\n", f"Improved:      {output}\n"]
    if number == "05":
        return [f"\n{name.capitalize()}: {text}\n" for name, text in output.items()]
    return [f"{output}\n"] if number == "06" else [f"\n# {output['title']}\n\n{output['content']}\n"]


def shown(output: str) -> str:
    """03's answer as it stands on the screen; after a restart, what came since."""
    text = re.sub(r"\A(.*\n)?Conversation \w+\n(You: .*\n\n)?", "", output)
    text = re.sub(r"(?s).*\n\[A call waits for approval: .*?\]\n\n", "", text)
    text = re.split(r"\n\n(?:To continue:|\[Disconnected|\[Interrupted)", text)[0]
    return text.rpartition("starts again.]\n\n")[2]
