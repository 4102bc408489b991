"""For tests: runs an orchestrator as a plain generator, step by step. The test is scheduler, worker and model."""

import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from hosting.payloads import ModelConverter

from agent_framework import AgentResponse, Content, Message
from durabletask.entities import EntityInstanceId
from durabletask.internal.type_discovery import orchestrator_input_type
from durabletask.task import CancellableTask, CompletableTask, CompositeTask, ReplaySafeLogger, Task

AGENT, ACTIVITY, TIMER, EVENT = "agent", "activity", "timer", "event"


@dataclass
class Call:
    """What the orchestrator has asked for.

    Attributes:
        kind: AGENT, ACTIVITY, TIMER or EVENT.
        name: the agent's, the activity's or the event's.
        input: the message, the activity's input, or the timer's seconds.
        conversation: the key of the agent's session.
        due: when the timer fires.
    """

    kind: str
    name: str
    input: Any = None
    conversation: str = ""
    due: datetime = datetime.max
    task: CancellableTask[Any] = field(default_factory=CancellableTask, repr=False)


class OrchestrationDouble:
    """An orchestrator under test, and the context it sees: the SDK's own tasks, that end when the test says so.

    Attributes:
        calls: everything it has asked for, in order.
        emptied: the keys of the conversations that it has emptied, in order.
        custom_status: the last one it set.
        output: what it returned.
        failure: what it raised.
        done: whether it has ended.
    """

    instance_id = "instance-1"
    is_replaying = False

    def __init__(self, orchestrator: Callable[..., Any], input: Any = None) -> None:
        self.calls: list[Call] = []
        self.emptied: list[str] = []
        self.custom_status: Any = None
        self.output: Any = None
        self.failure: Exception | None = None
        self.done = False
        self.current_utc_datetime = datetime(2030, 1, 1)
        self._uuids = 0
        self._events: dict[str, list[Any]] = defaultdict(list)  # those that nothing waits for
        self._converter = ModelConverter()

        self._generator: Generator[Any, Any, Any]

        def begin() -> Task[Any]:
            declared = orchestrator_input_type(orchestrator, self._converter)
            sent = self._converter.serialize(input)
            self._generator = orchestrator(self, self._converter.deserialize(sent, declared))
            return next(self._generator)

        self._advance(begin)

    # How the test drives it

    @property
    def asked(self) -> list[Call]:
        """The calls of agents, in order."""
        return [call for call in self.calls if call.kind == AGENT]

    @property
    def headline(self) -> str:
        """The first line of the custom status."""
        return str(self.custom_status).partition("\n")[0]

    @property
    def shown(self) -> str:
        """The custom status below its first line."""
        return str(self.custom_status).partition("\n")[2]

    @property
    def waiting(self) -> list[Call]:
        """The calls that have not ended, oldest first."""
        return [call for call in self.calls if not call.task.is_complete]

    def expect(self, kind: str, name: str | None = None) -> Call:
        """The oldest call of this kind, and name, that has not ended."""
        # Entities, and so agents, have their names in lower case on the wire.
        found = [c for c in self.waiting if c.kind == kind and (name is None or c.name.lower() == name.lower())]
        assert found, f"waits for {self.waiting}, not for {kind} {name or ''}; failure: {self.failure!r}"
        return found[0]

    def answer(self, text: str, agent: str | None = None) -> None:
        """The agent answers with this text."""
        self._end_agent_call(agent, Content.from_text(text))

    def fail(self, message: str, code: str = "ModelFailed", agent: str | None = None) -> None:
        """The agent's model call fails, as the agent runtime hands it over."""
        self._end_agent_call(agent, Content.from_error(message=message, error_code=code))

    def _end_agent_call(self, agent: str | None, content: Content) -> None:
        self.end(self.expect(AGENT, agent), AgentResponse(messages=[Message("assistant", [content])]).to_dict())

    def finish_activity(self, result: Any = None, name: str | None = None) -> None:
        """The activity returns this."""
        self.end(self.expect(ACTIVITY, name), result)

    def fire_timer(self) -> float:
        """The next timer that the orchestrator waits for fires; returns its seconds. The clock moves on.

        Timers that it has set earlier, and does not wait for any more, fire on the way.
        """
        awaited = set(map(id, _leaves(self._yielded)))
        timers = sorted((call for call in self.waiting if call.kind == TIMER), key=lambda call: call.due)
        for timer in timers:
            self.current_utc_datetime = max(self.current_utc_datetime, timer.due)
            self.end(timer, None)
            if id(timer.task) in awaited:
                return timer.input
        raise AssertionError(f"waits for {self.waiting}, and for no timer; failure: {self.failure!r}")

    def raise_event(self, name: str, data: Any = None) -> None:
        """An external event arrives; it is kept if the orchestrator does not wait for one."""
        waiting = [call for call in self.waiting if (call.kind, call.name.lower()) == (EVENT, name.lower())]
        if waiting:
            self.end(waiting[0], data)
        else:
            self._events[name.lower()].append(data)

    def end(self, call: Call, result: Any) -> None:
        """This call ends with this result, and the orchestrator continues as far as it can."""
        call.task.complete(result)
        self._go_on()

    def break_call(self, call: Call, error: Exception) -> None:
        """This call ends with an exception."""
        call.task.fail(str(error), error)
        self._go_on()

    def _go_on(self) -> None:
        while not self.done and self._yielded.is_complete:
            task = self._yielded
            if task.is_failed:
                exception = task.get_exception()
                self._advance(lambda error=exception: self._generator.throw(error))
            else:
                result = task.get_result()
                self._advance(lambda value=result: self._generator.send(value))

    def _advance(self, step: Callable[[], Task[Any]]) -> None:
        try:
            self._yielded = step()
        except StopIteration as end:
            self.done, self.output = True, end.value
        except Exception as error:
            self.done, self.failure = True, error

    # What the orchestrator sees: the parts of OrchestrationContext that the samples use

    def new_uuid(self) -> str:
        self._uuids += 1
        return f"uuid-{self._uuids}"

    def set_custom_status(self, custom_status: Any) -> None:
        self.custom_status = dict(custom_status) if isinstance(custom_status, dict) else custom_status

    def create_replay_safe_logger(self, logger: logging.Logger) -> ReplaySafeLogger:
        return ReplaySafeLogger(logger, lambda: self.is_replaying)

    def create_timer(self, fire_at: datetime | timedelta) -> CancellableTask[Any]:
        pause = fire_at if isinstance(fire_at, timedelta) else fire_at.replace(tzinfo=None) - self.current_utc_datetime
        due = self.current_utc_datetime + pause
        return self._call(Call(TIMER, "", pause.total_seconds(), due=due))

    def call_entity(self, entity: EntityInstanceId, operation: str, input: Any = None) -> CompletableTask[Any]:
        assert operation == "run"
        return self._call(Call(AGENT, entity.entity.removeprefix("dafx-"), input["message"], entity.key))

    def signal_entity(self, entity: EntityInstanceId, operation: str, input: Any = None) -> None:
        assert operation == "delete"
        self.emptied.append(entity.key)

    def call_activity(self, activity: Any, *, input: Any = None, **_: Any) -> CompletableTask[Any]:
        name = activity if isinstance(activity, str) else activity.__name__
        return self._call(Call(ACTIVITY, name, input))

    def wait_for_external_event(self, name: str, **_: Any) -> CancellableTask[Any]:
        task = self._call(Call(EVENT, name))
        if self._events[name.lower()]:
            task.complete(self._events[name.lower()].pop(0))
        return task

    def _call(self, call: Call) -> CancellableTask[Any]:
        self.calls.append(call)
        return call.task


def _leaves(task: Task[Any]) -> Iterator[Task[Any]]:
    """The tasks that a task waits for."""
    if isinstance(task, CompositeTask):
        for part in task.get_tasks():
            yield from _leaves(part)
    else:
        yield task
