"""Writes the results as a table, JSON and a chart."""

import importlib.metadata
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "agent-framework-core",
    "agent-framework-durabletask",
    "agent-framework-openai",
    "durabletask",
    "durabletask-azuremanaged",
    "grpcio",
    "openai",
    "redis",
)


# What the chart shows, with a model of 0 ms.
CHARTED = (
    "one turn (01)",
    "turn 200 of a conversation",
    "first token (03)",
    "chain of two (04)",
    "two at once (05)",
    "decision to completion (07)",
)


@dataclass(frozen=True)
class Numbers:
    """Summarizes a series of measurements in three numbers."""

    median: float
    p95: float | None
    runs: int

    @staticmethod
    def of(values: list[float], runs: int | None = None) -> "Numbers":
        """The numbers of a series; `runs` is the number of runs behind a single value."""
        p95 = statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else None
        return Numbers(statistics.median(values), p95, runs or len(values))


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        model: the delay of the model in milliseconds; None if the measure sets its own.
        direct: the same calls without durability.
        cpu_ms_a_turn: the processor time per turn, by process.
    """

    scenario: str
    measure: str
    model: int | None
    unit: str
    durable: Numbers
    direct: Numbers | None
    cpu_ms_a_turn: dict[str, float] | None

    @property
    def added(self) -> float | None:
        """What durability adds to the median of the direct calls."""
        return self.durable.median - self.direct.median if self.direct else None

    @property
    def ratio(self) -> float | None:
        """The median as a multiple of the direct calls'."""
        return self.durable.median / self.direct.median if self.direct and self.direct.median else None


def row(scenario: str, model: int | None, found: dict[str, Any]) -> Row:
    """A row from the output of a measure's process."""
    return Row(
        scenario,
        found["measure"],
        model,
        found["unit"],
        Numbers.of(found["values"], found.get("runs")),
        Numbers.of(found["direct"]) if found["direct"] else None,
        found.get("cpu_ms_a_turn"),
    )


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def as_json(row: Row) -> dict[str, Any]:
    """A row as JSON."""
    return {
        "scenario": row.scenario,
        "measure": row.measure,
        "model_ms": row.model,
        "unit": row.unit,
        **asdict(row.durable),
        "direct": row.direct and asdict(row.direct),
        "added": row.added,
        "ratio": row.ratio,
        "cpu_ms_a_turn": row.cpu_ms_a_turn,
    }


# Tables -----------------------------------------------------------------------------------------------------------


def tables(rows: list[Row], markdown: bool) -> str:
    """All rows, and the processor time per turn where it was measured."""
    head = ["", "model", "unit", "median", "p95", "runs", "direct", "p95", "added", "ratio"]
    body = [
        [
            row.measure,
            _model(row.model),
            row.unit,
            _number(row.durable.median),
            _number(row.durable.p95),
            str(row.durable.runs),
            _number(row.direct and row.direct.median),
            _number(row.direct and row.direct.p95),
            _number(row.added),
            f"{row.ratio:.1f} ×" if row.ratio else "–",
        ]
        for row in rows
    ]
    text = _table(head, body, markdown)
    loaded = [(row, row.cpu_ms_a_turn) for row in rows if row.cpu_ms_a_turn]
    if loaded:
        processes = list(loaded[0][1])
        head = ["CPU milliseconds a turn", "model", *processes]
        body = [[row.measure, _model(row.model), *(_number(cpu[name]) for name in processes)] for row, cpu in loaded]
        text += "\n\n" + _table(head, body, markdown)
    return text


def _model(delay: int | None) -> str:
    return "–" if delay is None else f"{delay} ms"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _table(head: list[str], body: list[list[str]], markdown: bool) -> str:
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [f"{cell:{'<' if not column else '>'}{widths[column]}}" for column, cell in enumerate(cells)]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    rule = ["-" * width if not column else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(head), *([line(rule)] if markdown else []), *map(line, body)])


# Chart ------------------------------------------------------------------------------------------------------------


def draw(rows: list[Row], path: Path) -> None:
    """Write an SVG of the times that one would compare, next to the direct calls."""
    import pygal  # here, because its import hook causes warnings in every later import
    from pygal.style import CleanStyle

    shown = [row for row in reversed(rows) if row.measure in CHARTED and row.model == 0]  # from the bottom up
    chart = pygal.HorizontalBar(
        js=[],  # so that opening it downloads nothing
        style=CleanStyle(colors=("#a7b1bc", "#4b86c8"), opacity="1", value_font_size=10),
        height=120 + 50 * len(shown),
        title="What durability costs, with a model of 0 ms",
        x_title="milliseconds, median",
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        print_values=True,
        formatter=_number,
    )
    chart.x_labels = [row.measure for row in shown]
    chart.add("direct calls", [row.direct and row.direct.median for row in shown])
    chart.add("durable", [row.durable.median for row in shown])
    chart.render_to_file(str(path))
