"""One agent call as a step of an orchestration: asked, checked, and asked again for as long as the model is away."""

from collections.abc import Callable, Generator
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypeVar

from agent_framework import AgentResponse
from agent_framework_durabletask import DurableAIAgent
from durabletask.task import OrchestrationContext, Task, when_any
from pydantic import BaseModel

from .agent_answer import AgentFailed, parsed, text_of
from .agent_runtime import DELETE, entity_of
from .status import say

DAY = timedelta(days=1)  # how long a model may be away, or an agent may have no worker
LONGEST_PAUSE = timedelta(minutes=5)  # between two attempts; the first is a second, each next twice as long
NO_ANSWER = timedelta(minutes=10)  # then the custom status asks whether a worker hosts the agent
TRIES = 4  # of a model that answers, but not usably
TRY_NOW = "TryNow"  # the external event that ends a pause

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Step: TypeAlias = Generator[Task[Any], Any, T]


def ask(context: OrchestrationContext, agent: DurableAIAgent[Any], message: str, **options: Any) -> Step[str]:
    """The agent's answer: `text = yield from ask(context, agent, "Write …")`.

    While the model is away, this waits and asks again, with durable timers; the first line of the custom status says
    why, and when. A failed attempt leaves its question in the conversation, and the agent would read it twice: so a
    retry, and the session with it, moves to a new conversation, which is emptied before each further retry.

    Options:
        session: the conversation to ask in, with what was said before.
        retry_message: what a retry asks instead, since its conversation has none of that.
        show: what the custom status shows below its first line.
        patience: how long a model may be away, a timedelta.

    Raises AgentFailed: the model rejects the request, has answered unusably four times, or was away for too long.
    """
    return (yield from _ask(context, agent, message, text_of, **options))


def ask_for(
    context: OrchestrationContext, agent: DurableAIAgent[Any], message: str, model: type[M], **options: Any
) -> Step[M]:
    """The same for an answer in JSON: `verdict = yield from ask_for(context, agent, "…", SpamVerdict)`."""
    return (yield from _ask(context, agent, message, lambda name, response: parsed(name, response, model), **options))


def _ask(
    context: OrchestrationContext,
    agent: DurableAIAgent[Any],
    message: str,
    read: Callable[[str, AgentResponse], T],
    session: Any = None,
    retry_message: str | None = None,
    show: str = "",
    patience: timedelta = DAY,
) -> Step[T]:
    ends, session = context.current_utc_datetime + patience, session or agent.create_session()
    attempt = unusable = 0
    while True:
        attempt += 1
        say(context, agent.name, f"asking {agent.name}" + (f", attempt {attempt}" if attempt > 1 else ""), show)
        response = yield from _answer(context, agent, agent.run(message, session=session), ends, show)
        try:
            answer = read(agent.name, response)
            say(context, agent.name, None, show)
            return answer
        except AgentFailed as failure:
            problem = failure
        unusable += problem.code == "AnswerUnusable"
        at = context.current_utc_datetime + min(timedelta(seconds=2 ** min(attempt - 1, 20)), LONGEST_PAUSE)
        reason = str(problem).removesuffix(".")
        if problem.code == "ModelRejected" or unusable == TRIES or at > ends:
            say(context, agent.name, reason, show)  # others may still be asked
            raise problem
        say(context, agent.name, f"{reason}. Attempt {attempt + 1} at {at:%H:%M:%S} UTC", show)
        while (try_now := context.wait_for_external_event(TRY_NOW)).is_complete:
            pass  # it came before this pause
        yield when_any([context.create_timer(at), try_now])
        try_now.cancel()  # otherwise the next such event would end the pause that is over
        if attempt == 1:
            session.durable_session_id = agent.create_session().durable_session_id
            message = retry_message or message
        else:  # "reset" would be the operation for it; in this version of the package it calls itself without end
            context.signal_entity(entity_of(session), DELETE)


def _answer(context: OrchestrationContext, agent: DurableAIAgent[Any], call: Any, ends: datetime, show: str) -> Any:
    """The answer to a call that was made. It is not made again: its worker may only be down."""
    since = f"since {context.current_utc_datetime:%Y-%m-%d %H:%M} UTC"
    if (yield when_any([call, context.create_timer(NO_ANSWER)])) is not call:
        say(context, agent.name, f"waiting for {agent.name} {since}: does a running worker host it?", show)
        if (yield when_any([call, context.create_timer(ends)])) is not call:
            raise AgentFailed(agent.name, f"No answer {since}. Does a running worker host it?")
    return call.get_result()
