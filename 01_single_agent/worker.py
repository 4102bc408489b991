"""Hosts one agent, Joker, as a durable entity: its conversations outlive this process."""

from hosting.chat_client import chat_client
from hosting.program import run
from hosting.scheduler import scheduler_worker, serve

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker


def create_joker() -> Agent:
    """An ordinary agent: nothing in it knows that it will be durable."""
    return Agent(client=chat_client(), name="Joker", instructions="You are good at telling jokes.")


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts Joker. Each conversation becomes an entity with the name dafx-joker and a key."""
    worker = scheduler_worker()
    DurableAIAgentWorker(worker).add_agent(create_joker())
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
