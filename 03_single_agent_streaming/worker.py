"""Hosts an agent that streams: each piece of its answer goes through Redis while the model writes the next."""

from hosting.chat_client import chat_client
from hosting.program import run
from hosting.scheduler import scheduler_worker, serve

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durable_tools import host_durable_tools
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from redis_stream import redis_client, stream_ttl
from redis_stream_callback import RedisStreamCallback
from tools import get_local_events, get_weather_forecast, reserve_table

INSTRUCTIONS = """\
You are an expert travel planner. When you plan a trip, look up the weather forecast and the local events first, and
work them into a plan day by day, with times and short practical advice. Headings and a few emojis make it easy to read.
Keep to the number of days that you are asked for. You can also reserve a table in a restaurant."""


def create_planner() -> Agent:
    """An ordinary agent with three tools, on a model that answers piece by piece."""
    return Agent(
        client=chat_client(stream=True),
        name="TravelPlanner",
        instructions=INSTRUCTIONS,
        tools=[get_weather_forecast, get_local_events, reserve_table],
    )


def create_worker() -> DurableTaskSchedulerWorker:
    """A worker that hosts the planner, with a callback that receives each piece of an answer."""
    worker = scheduler_worker()
    host_durable_tools(worker, reserve_table)
    callback = RedisStreamCallback(redis_client(), stream_ttl())
    DurableAIAgentWorker(worker).add_agent(create_planner(), callback=callback)
    return worker


def main() -> None:
    """Serve until Ctrl-C."""
    serve(create_worker())


if __name__ == "__main__":
    run(main)
