"""Hosts an agent that streams: every piece of its answer goes through Redis while the model still writes."""

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from redis_stream_response_handler import stream_handler
from support import chat_client, run, scheduler_worker, serve
from tools import get_local_events, get_weather_forecast

INSTRUCTIONS = """\
You are an expert travel planner. When you plan a trip, look up the weather forecast and the local events first, and
work them into a plan day by day, with times and short practical advice. Headings and a few emojis make it easy to read.
Keep to the number of days that you are asked for."""


def create_planner() -> Agent:
    """An agent with two tools, on a model that answers piece by piece. Where the pieces go is the worker's business."""
    return Agent(
        client=chat_client(stream=True),
        name="TravelPlanner",
        instructions=INSTRUCTIONS,
        tools=[get_weather_forecast, get_local_events],
    )


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts the planner, with a callback that hears every update of an answer."""
    worker = scheduler_worker()
    DurableAIAgentWorker(worker).add_agent(create_planner(), callback=stream_handler())
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
