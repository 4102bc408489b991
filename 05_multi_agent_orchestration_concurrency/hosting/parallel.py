"""Several steps of an orchestration at the same time, each with its own retries."""

import json
from collections.abc import Callable
from typing import Any

from durabletask.task import OrchestrationContext, Task, TaskFailedError, when_any

from .agent_answer import AgentFailed
from .agent_step import Step
from .status import show


class StepsFailed(Exception):
    """One or more steps failed; the message has a line for each."""


def in_parallel(context: OrchestrationContext, **steps: Step[Any]) -> Step[dict[str, Any]]:
    """The results by name: `answers = yield from in_parallel(context, a=ask(…), b=ask(…))`.

    The custom status shows those that have arrived, as JSON. Raises StepsFailed, once all steps have ended.
    """
    waiting: dict[str, Task[Any]] = {}
    results: dict[str, Any] = {}
    failures: list[str] = []

    def advance(name: str, resume: Callable[[Any], Task[Any]], value: Any) -> None:
        try:
            waiting[name] = resume(value)
        except StopIteration as end:
            results[name] = end.value
            show(context, json.dumps(results, ensure_ascii=False))
        except (AgentFailed, TaskFailedError) as failure:
            failures.append(str(failure))

    for name, step in steps.items():
        advance(name, step.send, None)
    while waiting:
        ended = yield when_any(list(waiting.values()))
        name = next(name for name, task in waiting.items() if task is ended)
        del waiting[name]
        failed, step = ended.is_failed, steps[name]
        advance(name, step.throw if failed else step.send, ended.get_exception() if failed else ended.get_result())
    if failures:
        raise StepsFailed("\n".join(failures))
    return {name: results[name] for name in steps}
