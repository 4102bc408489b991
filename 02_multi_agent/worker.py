"""Hosts three agents in one worker: two experts, and a router that picks one of them by topic."""

from typing import Any

from hosting.chat_client import chat_client
from hosting.program import run
from hosting.scheduler import scheduler_worker, serve

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from models import Routing

ROUTING_INSTRUCTIONS = """\
You decide who answers the user's question; you do not answer it yourself.
PhysicistAgent answers questions of physics, ChemistAgent questions of chemistry.
A follow-up that names no topic goes to whoever you chose last. If a question belongs to neither field, choose none."""


def create_agents() -> list[Agent[Any]]:
    """The agents. The router is one by its instructions, and by the form in which it must answer."""
    model = chat_client()
    return [
        Agent(
            client=model,
            name="PhysicistAgent",
            instructions="You are an expert in physics. Answer from a physics perspective, in a few sentences.",
        ),
        Agent(
            client=model,
            name="ChemistAgent",
            instructions="You are an expert in chemistry. Answer from a chemistry perspective, in a few sentences.",
        ),
        Agent[Any](
            client=model,
            name="RouterAgent",
            instructions=ROUTING_INSTRUCTIONS,
            default_options={"response_format": Routing},
        ),
    ]


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts all three. A conversation is an agent's name and a key: no agent sees another's."""
    worker = scheduler_worker()
    agents = DurableAIAgentWorker(worker)
    for agent in create_agents():
        agents.add_agent(agent)
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
