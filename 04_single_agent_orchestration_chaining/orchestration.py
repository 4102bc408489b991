"""The pattern: one agent, called twice in one conversation, the second call building on the first."""

from hosting.agent_step import Step, ask

from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask.task import OrchestrationContext
from models import Topic


def single_agent_chaining_orchestration(context: OrchestrationContext, topic: Topic | None) -> Step[str]:
    """Write a sentence about the topic ("learning" if there is none), then improve it; returns the improved one."""
    about = topic.root if topic and topic.root else "learning"
    writer = DurableAIAgentOrchestrationContext(context).get_agent("WriterAgent")
    session = writer.create_session()

    # This worker may die at each yield. Another worker then runs this function from the top: calls that have an answer
    # return it immediately, so the model is asked only for what is missing.
    draft = yield from ask(context, writer, f"Write a concise inspirational sentence about {about}.", session=session)

    # In the same session the agent has said the sentence itself, so the prompt need not repeat it.
    improved = yield from ask(
        context,
        writer,
        "Improve that sentence, in under 25 words.",
        session=session,
        retry_message=f"Improve this sentence, in under 25 words: {draft}",  # a retry is made in a new conversation
        show=draft,  # in the custom status, for the client and the dashboard
    )
    return improved
