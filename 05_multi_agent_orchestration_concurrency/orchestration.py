"""The pattern: two agents asked at the same time, and their answers joined."""

from hosting.agent_step import Step, ask
from hosting.parallel import in_parallel

from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask.task import OrchestrationContext
from models import Question


def multi_agent_concurrent_orchestration(context: OrchestrationContext, question: Question) -> Step[dict[str, str]]:
    """Ask both experts the same question; returns both answers. Fails if one of them has none, and names it."""
    agents = DurableAIAgentOrchestrationContext(context)
    physicist, chemist = agents.get_agent("PhysicistAgent"), agents.get_agent("ChemistAgent")

    # Both calls are made before either is waited for, and each is retried on its own. If this worker dies now, another
    # one runs this function from the top: an answer that has arrived is kept, and only the other call is repeated.
    answers = yield from in_parallel(
        context,
        physicist=ask(context, physicist, question.root),
        chemist=ask(context, chemist, question.root),
    )
    return answers
