"""The table of `run.py prove`, a row for each sample and process; its last line; and the same as JSON."""

import statistics
from collections.abc import Iterator
from typing import Any

from runner.prove.cases import QUIET, VICTIMS, Case
from runner.prove.checks import COUNTS, Outcome

COLUMNS = ("runs", "lost", "doubled", "paid again", "wrong text", "hung", "median s", "worst s")
Key = tuple[bool, str, str]


def key_of(case: Case) -> Key:
    """The row of a case. Those with processes that are not killed, but silent, come last."""
    return case.victim in QUIET, case.sample.number, case.victim


class Table:
    """Prints each row when its runs are over, and those of the rows before it."""

    def __init__(self, cases: list[Case]) -> None:
        self.outcomes: list[Outcome] = []
        keys = [key_of(case) for case in cases]
        self._left = {
            key: keys.count(key) for key in sorted(set(keys), key=lambda key: (key[0], key[1], keys.index(key)))
        }
        print(f"{'sample':8}{'killed':18}" + "".join(f"{name:>11}" for name in COLUMNS), flush=True)

    def add(self, outcome: Outcome) -> None:
        """Note the end of a run."""
        self.outcomes.append(outcome)
        self._left[key_of(outcome.case)] -= 1
        for problem in outcome.problems:
            print(f"! {outcome.case}: {problem}", flush=True)
        while self._left and (first := next(iter(self._left))) and not self._left[first]:
            del self._left[first]
            show(first[1], first[2], [one for one in self.outcomes if key_of(one.case) == first])

    def end(self) -> None:
        """Print the rows of all samples together, and the last line."""
        for victim in VICTIMS:
            if of_one := [one for one in self.outcomes if one.case.victim == victim]:
                show("all", victim, of_one)
        print(f"\n{last_line(self.outcomes)}", flush=True)


def show(sample: str, victim: str, outcomes: list[Outcome]) -> None:
    """Print a row."""
    cells = (f"{'–' if value is None else value:>11}" for value in summary(outcomes).values())
    print(f"{sample:8}{victim:18}{''.join(cells)}", flush=True)


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """The numbers of some runs, by column."""
    seconds = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    counts = [sum(getattr(outcome, count) for outcome in outcomes) for count in COUNTS]
    times = [round(number(seconds), 1) if seconds else None for number in (statistics.median, max)]
    return dict(zip(COLUMNS, [len(outcomes), *counts, *times], strict=True))


def last_line(outcomes: list[Outcome]) -> str:
    """What came of it, to quote."""
    killed = [one for one in outcomes if one.case.victim not in QUIET]
    bad = [sum(bool(getattr(outcome, count)) for outcome in outcomes) for count in COUNTS]
    whats = (
        "lost anything",
        "did anything twice",
        "paid for a finished model call again",
        "showed a wrong text",
        "hung",
    )
    if not any(bad):
        *most, last = whats
        what = f"0 of {len(outcomes)} runs {', '.join(most)} or {last}."
    else:
        of = (f"{number} of {len(outcomes)} runs {what}" for number, what in zip(bad, whats, strict=True) if number)
        what = f"{'; '.join(of)}.".replace("anything", "something")
    numbers = summary(killed or outcomes)
    after = "After a kill" if killed else "After that"
    return f"{what} {after}, the result was there within {numbers['worst s']} s, {numbers['median s']} s in the median."


def as_json(outcomes: list[Outcome], **about: Any) -> dict[str, Any]:
    """All runs."""
    return {**about, "last_line": last_line(outcomes), "runs": [dict(_fields(outcome)) for outcome in outcomes]}


def _fields(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    case = outcome.case
    yield from (("sample", case.sample.number), ("killed", case.victim), ("step", case.step.name))
    if case.moment:
        yield "moment", case.moment
    yield from ((name, getattr(outcome, name)) for name in (*COUNTS, "told", "seconds", "problems"))
