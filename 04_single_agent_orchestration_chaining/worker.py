"""Chains two calls of one agent. WriterAgent writes a sentence, then improves it, in one durable orchestration."""

from hosting.chat_client import chat_client
from hosting.program import run
from hosting.scheduler import scheduler_worker, serve

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from orchestration import single_agent_chaining_orchestration


def create_writer() -> Agent:
    """An ordinary agent: nothing in it knows that it will be called in a chain."""
    return Agent(
        client=chat_client(),
        name="WriterAgent",
        instructions="You refine short pieces of text. Write one sentence; when asked to improve one, polish it. "
        "Answer with the sentence alone.",
    )


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts the agent and the orchestration that calls it."""
    worker = scheduler_worker()
    DurableAIAgentWorker(worker).add_agent(create_writer())
    worker.add_orchestrator(single_agent_chaining_orchestration)
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
