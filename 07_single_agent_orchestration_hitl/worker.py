"""Waits for a person to approve or reject a draft. An agent writes it, and no process has to live meanwhile."""

from typing import Any

from hosting.chat_client import chat_client
from hosting.program import run
from hosting.scheduler import scheduler_worker, serve

from activities import notify_user_for_approval, publish_content
from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from models import Draft
from orchestration import content_generation_hitl_orchestration

INSTRUCTIONS = """\
You write short, well-structured articles for a general audience: a title, and the content in a few paragraphs.
When you are given an article and a reviewer's feedback, revise it by the feedback, and keep what is not criticized."""


def create_writer() -> Agent[Any]:
    """An ordinary agent, which answers with a Draft; it does not know that a person will judge it."""
    return Agent[Any](
        client=chat_client(),
        name="ContentWriterAgent",
        instructions=INSTRUCTIONS,
        default_options={"response_format": Draft},
    )


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts the agent, the orchestration that waits for people, and the two activities that act."""
    worker = scheduler_worker()
    DurableAIAgentWorker(worker).add_agent(create_writer())
    worker.add_orchestrator(content_generation_hitl_orchestration)
    worker.add_activity(notify_user_for_approval)
    worker.add_activity(publish_content)
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
