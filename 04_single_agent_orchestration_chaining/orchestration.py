"""The pattern: one agent, called twice in one conversation, the second call building on the first."""

from typing import Any

from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask.task import OrchestrationContext
from models import Topic
from steps import Step, ask, read_input


def single_agent_chaining_orchestration(context: OrchestrationContext, topic: Any) -> Step[str]:
    """Write a sentence about the topic ("learning" if there is none), then improve it; returns the improved one."""
    about = read_input(Topic, "learning" if topic is None else topic).root
    writer = DurableAIAgentOrchestrationContext(context).get_agent("WriterAgent")
    session = writer.create_session()

    # At each yield this worker may die. The next one runs this function from its top, and is handed what had been
    # answered by then: only what had not is asked of the model.
    draft = yield from ask(context, writer, f"Write a concise inspirational sentence about {about}.", session=session)
    context.set_custom_status(draft)  # to be seen, by the client and in a dashboard, while the second call is made

    # The prompt need not repeat the sentence: in the same session the agent has said it itself.
    improved = yield from ask(context, writer, "Improve that sentence, in under 25 words.", session=session)
    return improved
