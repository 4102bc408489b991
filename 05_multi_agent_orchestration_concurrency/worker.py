"""Asks two agents in parallel. PhysicistAgent and ChemistAgent answer one question, in one orchestration."""

from hosting.chat_client import chat_client
from hosting.program import run
from hosting.scheduler import scheduler_worker, serve

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from orchestration import multi_agent_concurrent_orchestration


def create_experts() -> list[Agent]:
    """Two ordinary agents that know nothing of each other."""
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
    ]


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts both agents and the orchestration that asks them."""
    worker = scheduler_worker()
    agents = DurableAIAgentWorker(worker)
    for expert in create_experts():
        agents.add_agent(expert)
    worker.add_orchestrator(multi_agent_concurrent_orchestration)
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
