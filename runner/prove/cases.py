"""What each sample does, step by step, and what a run of it leaves; the list of all kills follows from that."""

import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from runner.addresses import ROOT

SAMPLES = ROOT  # the folder with the samples
WORKER, CLIENT, SCHEDULER, REDIS, MODEL = "worker", "client", "scheduler", "redis", "model"
FROZEN_WORKER, SILENT_WORKER, FROZEN_SCHEDULER = "frozen worker", "silent worker", "frozen scheduler"
QUIET = (FROZEN_WORKER, SILENT_WORKER, FROZEN_SCHEDULER)  # not killed: they only say nothing any more
VICTIMS = (WORKER, CLIENT, SCHEDULER, REDIS, MODEL, *QUIET)


@dataclass(frozen=True)
class Step:
    """A point of a run, at which a process is killed.

    Attributes:
        stop: model or worker stop there (stops.py); empty if they do not.
        asked: how many of the sample's questions the scheduler has.
        answers: so many answers are stored.
        unseen: and the client has not seen the last of them.
        begun: whether the worker has begun.
        draft: this draft waits for a person, or a tool's call, which counts as draft 1.
        late: the successor starts when the time for a decision is over.
        retry: the model's first answer was empty, and the second attempt waits for its time.
        victims: what is killed there.
    """

    name: str
    stop: str = ""
    asked: int = 1
    answers: int = 0
    unseen: bool = False
    begun: bool = True
    draft: int = 0
    late: bool = False
    retry: bool = False
    victims: tuple[str, ...] = (WORKER, CLIENT, SCHEDULER)


@dataclass(frozen=True)
class Sample:
    """A sample, and one way through it.

    Attributes:
        ask: the arguments of its client; {folder} is the run's, {id} the conversation's key or the instance id.
        again: the arguments with which a person comes back after the client was killed.
        before: the arguments of an earlier client, which starts the orchestration and leaves.
        questions: of 01 to 03: which agent is asked what.
        comes_back_with: the question in `again`.
        effects: how many files the run leaves.
        fails: its end is a failure with these words.
    """

    number: str
    steps: tuple[Step, ...]
    ask: tuple[str, ...] = ()
    again: tuple[str, ...] = ("--instance", "{id}")
    before: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    comes_back_with: tuple[tuple[str, str], ...] = ()
    effects: int = 0
    fails: str = ""

    @property
    def ask_again(self) -> tuple[str, ...]:
        """The arguments with which a person asks after a failure: another question, or the same."""
        return self.again if self.comes_back_with else (*self.again, *self.ask)

    @property
    def folder(self) -> Path:
        """Where it is."""
        (folder,) = SAMPLES.glob(f"{self.number}_*")
        return folder


@dataclass(frozen=True)
class Case:
    """A sample, the process that is killed, and when: at a step, or at a random moment, in seconds."""

    sample: Sample
    victim: str
    step: Step
    moment: float = 0.0

    def __str__(self) -> str:
        return f"{self.sample.number}, {self.victim}, {self.step.name}"


EMAILS = {
    "answered": "From: Ada Miller <ada@example.com>\nTo: John <john@example.com>\nSubject: Quarterly report\n"
    "Message-ID: <{id}@example.com>\n\nHi John, could you please send me the updated figures by Friday? Ada\n",
    "spam": "From: Prize Office <winner@prizes.example>\nTo: John <john@example.com>\nSubject: URGENT: your prize\n"
    "Message-ID: <{id}@example.com>\n\nURGENT! You've won $1,000,000! Click here now to claim your prize!\n",
}
ALL = (WORKER, CLIENT, SCHEDULER, MODEL)
WITH_REDIS = (*ALL, REDIS)
STORED = Step("question stored", begun=False)
FIRST = Step("model called first", "request 1", victims=(*ALL, FROZEN_SCHEDULER))
FIRST_AND_QUIET = replace(FIRST, victims=(*ALL, *QUIET))
AT_RANDOM = Step("a random moment")
MOMENTS = (0.05, 1.2)  # seconds after the client's start: runs take about a second then
FIRST_STORED = Step("first answer stored", "request 1", answers=1, unseen=True)
SECOND = Step("model called second", "request 2", asked=2, victims=ALL)
DONE = Step("answer stored", "request 2", asked=2, answers=2, unseen=True)

JOKES = ("Tell me a joke about a pirate.", "Now explain that joke.")  # as 01's client asks without arguments
DINNER = "Reserve a table for 4 at Chez Paul in Lisbon tomorrow at 20:00."
PARTY = "Reserve a table for 12 at Chez Paul in Lisbon tomorrow at 20:00."  # so many need a person's approval
RUST, SIMPLER, LISBON = "Why does iron rust?", "Please explain that more simply.", "Plan a day in Lisbon."

SAMPLES_AND_STEPS = [
    Sample(
        "01",
        (STORED, FIRST_AND_QUIET, FIRST_STORED, SECOND, DONE),
        again=("--session", "{id}", "What did I ask first?"),
        questions=(("Joker", JOKES[0]), ("Joker", JOKES[1])),
        comes_back_with=(("Joker", "What did I ask first?"),),
    ),
    Sample(
        "02",
        (STORED, FIRST, FIRST_STORED, SECOND, DONE),
        ask=(RUST,),
        again=("--session", "{id}", "--agent", "ChemistAgent", SIMPLER),
        questions=(("RouterAgent", RUST), ("ChemistAgent", RUST)),
        comes_back_with=(("ChemistAgent", SIMPLER),),
    ),
    Sample(
        "03",
        (
            STORED,
            Step("model called first", "request 1", victims=(*WITH_REDIS, FROZEN_SCHEDULER)),
            Step("model called second", "request 2", victims=WITH_REDIS),
            Step("stream half way", "half 2", victims=WITH_REDIS),
            Step("answer stored", "half 2", answers=1, unseen=True, victims=(WORKER, CLIENT, SCHEDULER, REDIS)),
        ),
        ask=(LISBON,),
        again=("--session", "{id}"),
        questions=(("TravelPlanner", LISBON),),
    ),
    Sample(
        "03",
        (
            Step("table not yet reserved", "before reserve_table"),
            Step("table reserved", "after reserve_table"),
            Step("tool's result stored", "request 2", victims=WITH_REDIS),
        ),
        ask=(DINNER,),
        again=("--session", "{id}"),
        questions=(("TravelPlanner", DINNER),),
        effects=1,
    ),
    Sample(
        "03",
        (Step("waiting for approval", draft=1),),
        ask=("--session", "{id}"),
        again=("--session", "{id}"),
        before=(PARTY,),
        questions=(("TravelPlanner", PARTY),),
        effects=1,
    ),
    Sample("04", (STORED, FIRST_AND_QUIET, SECOND, Step("pause before a retry", retry=True), DONE)),
    Sample(
        "05",
        (
            STORED,
            Step("model called by both", "request 1 2", victims=(*ALL, FROZEN_SCHEDULER)),
            Step("one answer stored", "request 2", answers=1, victims=ALL),
            DONE,
        ),
    ),
    Sample(
        "06",
        (
            STORED,
            FIRST,
            SECOND,
            Step("reply not yet sent", "before send_email"),
            Step("reply sent", "after send_email"),
            DONE,
        ),
        ask=("{folder}/answered.eml",),
        again=("{folder}/answered.eml",),  # handed in again, as whoever does not know what became of it does
        effects=1,
    ),
    Sample(
        "06",
        (Step("spam not yet put aside", "before handle_spam_email"), Step("spam put aside", "after handle_spam_email")),
        ask=("{folder}/spam.eml",),
        again=("{folder}/spam.eml",),
        effects=1,
    ),
    Sample(
        "07",
        (
            STORED,
            FIRST,
            Step("waiting for a person", draft=1),
            SECOND,
            Step("not yet published", "before publish_content"),
            Step("published", "after publish_content"),
            DONE,
        ),
        ask=("--instance", "{id}"),
        before=("--no-wait",),
        effects=1,
    ),
    Sample(
        "07",
        (Step("timer due", draft=1, late=True),),
        ask=("--instance", "{id}"),
        before=("--no-wait", "--review-timeout", "2"),
        fails="timed out after 2 seconds",
    ),
]


def steps_of(sample: Sample) -> tuple[Step, ...]:
    """Its steps that can be reached here: Windows cannot freeze a process."""
    return tuple(step for step in sample.steps if sys.platform != "win32" or (step.begun and not step.unseen))


def all_cases(number: str = "", kill: str = "", at: str = "") -> list[Case]:
    """All kills at a step, or those of one sample, of one process, or at one step."""
    victims = [one for one in VICTIMS if one.startswith(kill) and (sys.platform != "win32" or one not in QUIET)]
    return [
        Case(sample, victim, step)
        for sample in SAMPLES_AND_STEPS
        for victim in victims
        for step in steps_of(sample)
        if victim in step.victims and sample.number.startswith(number) and step.name.startswith(at)
    ]


def without_scheduler(found: list[Case]) -> list[Case]:
    """Those that need no scheduler of their own, nor one that shows a question before a worker has it."""
    kills = (WORKER, CLIENT, REDIS, MODEL)
    return [case for case in found if case.victim in kills and not (case.sample.questions and not case.step.begun)]


def random_cases(found: list[Case], rounds: int, choices: random.Random) -> list[Case]:
    """In each round, each process that is killed in these cases is killed once in each sample, at a random moment."""
    pairs = {(case.sample.number, case.victim): case.sample for case in found if case.sample.steps[0] is STORED}
    return [
        Case(sample, victim, AT_RANDOM, moment=choices.uniform(*MOMENTS))
        for _ in range(rounds)
        for (_, victim), sample in pairs.items()
        if victim not in QUIET
    ]
