"""The pattern: two agents asked at the same time, and their answers joined."""

from typing import Any

from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask.task import OrchestrationContext, when_all
from models import Question
from steps import Step, StepFailed, checked, read_input, retry_pauses


class AnswerMissing(Exception):
    """An expert has no answer; the message names each such expert, and says why."""


def multi_agent_concurrent_orchestration(context: OrchestrationContext, question: Any) -> Step[dict[str, str]]:
    """Ask both experts the same question at the same time, and return both answers.

    Raises AnswerMissing if one of them has none in the end; what the other one said is then in the custom status.
    """
    question = read_input(Question, question).root
    agents = DurableAIAgentOrchestrationContext(context)
    experts = {"physicist": agents.get_agent("PhysicistAgent"), "chemist": agents.get_agent("ChemistAgent")}
    answers: dict[str, str] = {}
    failures: dict[str, StepFailed] = {}
    missing = list(experts)

    for pause in retry_pauses():
        if pause:
            yield context.create_timer(pause)

        # All that is missing is asked at once: the calls are made first, and waited for together. If this worker
        # dies now, what has arrived is kept, and only the rest is asked again.
        replies = yield when_all([experts[name].run(question) for name in missing])

        for name, reply in zip(missing, replies, strict=True):
            failures.pop(name, None)
            try:
                answers[name] = checked(experts[name].name, reply)
            except StepFailed as failure:
                failures[name] = failure
        context.set_custom_status(answers)  # kept where a client finds them: an orchestration that fails has no output
        missing = [name for name, failure in failures.items() if not failure.rejected]
        if not missing:
            break

    if failures:
        raise AnswerMissing("\n".join(map(str, failures.values())))
    return {name: answers[name] for name in experts}
