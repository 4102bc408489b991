"""Hosts one agent, Joker, as a durable entity: its conversations outlive this process."""

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from long_conversation import bounded_conversations, summarize_after_turns
from support import chat_client, run, scheduler_worker, serve


def create_joker() -> Agent:
    """An ordinary agent: nothing in it knows that it will be durable."""
    return Agent(client=chat_client(), name="Joker", instructions="You are good at telling jokes.")


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts Joker. Each conversation becomes an entity of its own: the name dafx-joker, and a key."""
    worker = scheduler_worker()
    # The scheduler stores 1 MB of a conversation; with SUMMARIZE_AFTER_TURNS set, it goes on from a summary in time.
    DurableAIAgentWorker(bounded_conversations(worker, summarize_after_turns())).add_agent(create_joker())
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
