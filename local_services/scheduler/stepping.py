"""An orchestrator's steps: what a worker receives, and what happens with the actions that it returns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
from google.protobuf.wrappers_pb2 import StringValue

from local_services.scheduler.limits import check_instance_id, step_failure
from local_services.scheduler.records import (
    CONTINUED_AS_NEW,
    FAILED,
    FINISHED,
    PENDING,
    RUNNING,
    SUSPENDED,
    Activity,
    Attempts,
    Message,
    Orchestration,
    Refused,
    copy,
    in_order,
    micros,
    optional,
    text,
    timestamp,
)

if TYPE_CHECKING:
    from local_services.scheduler.hub import Hub
    from local_services.scheduler.work import Delivery

_CARRIED = ("eventRaised", "executionSuspended", "executionResumed")


class Steps:
    """The steps of a hub's orchestrations."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def fill(self, item: pb.OrchestratorRequest, orchestration: Orchestration, delivery: Delivery) -> None:
        """Put the next step into a work item."""
        inbox = in_order(orchestration)
        if any(message.event.HasField("executionRewound") for message in inbox):
            # The SDK expects this event alone: the worker answers with a new history without the failures.
            inbox = [message for message in inbox if message.event.HasField("executionRewound")][:1]
        has_begun = orchestration.chunks or (inbox and inbox[0].event.HasField("executionStarted"))
        if not inbox or not has_begun or orchestration.status == SUSPENDED:
            return
        delivery.messages = list(inbox)
        delivery.events = [message.event for message in inbox]
        if not inbox[0].event.HasField("orchestratorStarted"):
            delivery.events.insert(0, self._hub.event(orchestratorStarted=pb.OrchestratorStartedEvent()))
        item.instanceId = orchestration.id
        item.executionId.value = orchestration.execution
        item.pastEvents.extend(self._hub.orchestrations.history(orchestration))
        item.newEvents.extend(delivery.events)
        if orchestration.own_trace is not None:
            item.orchestrationTraceContext.CopyFrom(orchestration.own_trace)

    def complete(self, orchestration: Orchestration, response: pb.OrchestratorResponse, delivery: Delivery) -> None:
        """Store a step: the events that it saw, and its actions."""
        self._consume(orchestration, delivery.messages)
        events = delivery.events
        if orchestration.status == PENDING:
            orchestration.status = RUNNING
        if details := step_failure(response):
            self._hub.orchestrations.finish(orchestration, FAILED, None, details, events)
            return
        if response.HasField("customStatus"):
            orchestration.custom_status = response.customStatus.value
        if response.HasField("orchestrationTraceContext"):
            orchestration.own_trace = response.orchestrationTraceContext
        ending: pb.CompleteOrchestrationAction | None = None
        for action in response.actions:
            match action.WhichOneof("orchestratorActionType"):
                case "completeOrchestration":
                    ending = action.completeOrchestration
                case "rewindOrchestration":
                    self._replace_history(orchestration, list(action.rewindOrchestration.newHistory))
                    return
                case _:
                    self._act(orchestration, action, events)
        if ending is None:
            self._hub.orchestrations.append(orchestration, events)
            self._hub.orchestrations.save(orchestration)
            self._hub.orchestrations.offer(orchestration)
        elif ending.orchestrationStatus == CONTINUED_AS_NEW:
            self._continue_as_new(orchestration, ending)
        else:
            details = ending.failureDetails if ending.HasField("failureDetails") else None
            self._hub.orchestrations.finish(
                orchestration, ending.orchestrationStatus, text(ending, "result"), details, events
            )

    def _act(self, orchestration: Orchestration, action: pb.OrchestratorAction, events: list[pb.HistoryEvent]) -> None:
        """Do one of the step's actions, and add it to the history."""
        hub, event = self._hub, pb.HistoryEvent(eventId=action.id, timestamp=timestamp(self._hub.now))
        events.append(event)
        match action.WhichOneof("orchestratorActionType"):
            case "scheduleTask":
                task = action.scheduleTask
                copy(task, event.taskScheduled, "version", "input", "parentTraceContext")
                event.taskScheduled.name = task.name
                event.taskScheduled.tags.update(task.tags)
                hub.work.add_activity(self._activity(orchestration, action.id, task))
            case "createTimer":
                fire_at = action.createTimer.fireAt
                event.timerCreated.fireAt.CopyFrom(fire_at)
                fired = pb.TimerFiredEvent(timerId=action.id, fireAt=fire_at)
                hub.send(orchestration.id, hub.event(timerFired=fired), micros(fire_at))
            case "createSubOrchestration":
                self._call(orchestration, action.id, action.createSubOrchestration, event)
            case "sendEvent":
                sent = action.sendEvent
                event.eventSent.instanceId, event.eventSent.name = sent.instance.instanceId, sent.name
                raised = pb.EventRaisedEvent(name=sent.name, input=optional(sent, "data"))
                copy(raised, event.eventSent, "input")
                if sent.instance.instanceId in self._hub.orchestrations.live:
                    hub.send(sent.instance.instanceId, hub.event(eventRaised=raised))
            case "terminateOrchestration":
                events.pop()  # the history has no event for it
                target = self._hub.orchestrations.live.get(action.terminateOrchestration.instanceId)
                if target and target is not orchestration:
                    self._hub.orchestrations.end(
                        target,
                        optional(action.terminateOrchestration, "reason"),
                        action.terminateOrchestration.recurse,
                    )
            case "sendEntityMessage":
                kind = action.sendEntityMessage.WhichOneof("EntityMessageType")
                getattr(event, kind).CopyFrom(getattr(action.sendEntityMessage, kind))
                hub.entities.told(orchestration, event)

    def _activity(self, caller: Orchestration, task_id: int, task: pb.ScheduleTaskAction) -> Activity:
        request = pb.ActivityRequest(name=task.name, taskId=task_id, tags=dict(task.tags))
        copy(task, request, "version", "input", "parentTraceContext")
        if not task.HasField("version") and caller.version is not None:
            request.version.value = caller.version  # workers may filter by version
        request.orchestrationInstance.instanceId = caller.id
        request.orchestrationInstance.executionId.value = caller.execution
        activity = Activity(self._hub.next_id(), caller.key, request)
        self._hub.changes.activities[activity.id] = activity
        return activity

    def _call(
        self, parent: Orchestration, task_id: int, call: pb.CreateSubOrchestrationAction, event: pb.HistoryEvent
    ) -> None:
        instance_id = call.instanceId or f"{parent.id}:{task_id:04x}"
        created = event.subOrchestrationInstanceCreated
        created.instanceId, created.name = instance_id, call.name
        copy(call, created, "version", "input", "parentTraceContext")
        created.tags.update(call.tags)
        self._start_child(parent, task_id, created)

    def _start_child(
        self, parent: Orchestration, task_id: int, created: pb.SubOrchestrationInstanceCreatedEvent
    ) -> None:
        instance_id = created.instanceId
        existing = self._hub.orchestrations.find(instance_id)
        try:
            check_instance_id(instance_id)
            if existing and existing.status not in FINISHED:
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"Orchestration '{instance_id}' is running already.")
        except Refused as refused:
            details = pb.TaskFailureDetails(errorType="SubOrchestrationNotStarted", errorMessage=str(refused))
            failed = pb.SubOrchestrationInstanceFailedEvent(taskScheduledId=task_id, failureDetails=details)
            self._hub.send(parent.id, self._hub.event(subOrchestrationInstanceFailed=failed))
            return
        if existing:
            self._hub.orchestrations.remove(existing)
        started = pb.ExecutionStartedEvent(name=created.name, tags=dict(created.tags))
        copy(created, started, "version", "input", "parentTraceContext")
        self._hub.orchestrations.create(instance_id, started, (parent.id, parent.key, task_id))

    def _continue_as_new(self, orchestration: Orchestration, ending: pb.CompleteOrchestrationAction) -> None:
        """Begin again with another key, a new input, and the events that the old execution has not waited for."""
        # Other messages answer the old execution's actions. The new execution uses the same numbers for its own.
        late = [
            event for message in orchestration.inbox if (event := message.event).WhichOneof("eventType") in _CARRIED
        ]
        started = pb.ExecutionStartedEvent(name=orchestration.name, tags=orchestration.tags)
        if orchestration.caller_trace is not None:
            started.parentTraceContext.CopyFrom(orchestration.caller_trace)
        if (version := text(ending, "newVersion") or orchestration.version) is not None:
            started.version.value = version
        if ending.HasField("result"):
            started.input.CopyFrom(ending.result)
        created, custom_status = orchestration.created, orchestration.custom_status
        self._hub.orchestrations.remove(orchestration)
        self._hub.orchestrations.create(
            orchestration.id, started, (orchestration.parent, orchestration.parent_key, orchestration.parent_task)
        )
        new = self._hub.orchestrations.live[orchestration.id]
        new.created, new.custom_status = created, custom_status
        for event in (*ending.carryoverEvents, *late):
            self._hub.send(new.id, event)
        if orchestration.status == SUSPENDED:
            new.status = SUSPENDED
            self._hub.work.withdraw(new)

    def _replace_history(self, old: Orchestration, history: list[pb.HistoryEvent]) -> None:
        """Continue with the history from a rewinding worker, which does not contain the failures."""
        late = [message.event for message in old.inbox]
        self._hub.orchestrations.remove(old)
        new = replace(old, key=self._hub.next_id(), history=[], chunks=0, inbox=[], timers={}, attempts=Attempts())
        self._hub.orchestrations.revive(new)
        self._hub.orchestrations.append(new, history)
        for child_id in self._hub.records.children(old.key):
            if child := self._hub.orchestrations.find(child_id):
                child.parent_key = new.key
                self._hub.changes.orchestrations[child.key] = child
        reason = next(
            (event.executionRewound for event in reversed(history) if event.HasField("executionRewound")), None
        )
        self._begin_again(new, history, late, optional(reason, "reason") if reason else None)
        self._hub.send(new.id, self._hub.event(orchestratorStarted=pb.OrchestratorStartedEvent()))
        for event in late:
            self._hub.send(new.id, event)
        if old.status == SUSPENDED:
            new.status = SUSPENDED
            self._hub.work.withdraw(new)

    def _begin_again(
        self,
        orchestration: Orchestration,
        history: list[pb.HistoryEvent],
        late: list[pb.HistoryEvent],
        reason: StringValue | None,
    ) -> None:
        """Start everything again that the history waits for: it was cancelled when the orchestration failed.

        Not what ended after the rewind was requested.
        """
        ended: set[int | str] = set()
        for event in (*history, *late):
            ended.update((event.taskCompleted.taskScheduledId, event.taskFailed.taskScheduledId))
            ended.add(event.subOrchestrationInstanceCompleted.taskScheduledId)
            ended.add(event.subOrchestrationInstanceFailed.taskScheduledId)
            ended.add(event.timerFired.timerId)
            ended.update((event.entityOperationCompleted.requestId, event.entityOperationFailed.requestId))
        for event in history:
            if event.eventId in ended:
                continue
            ended.add(event.eventId)  # a step whose replay failed may have asked for it a second time
            if event.HasField("taskScheduled"):
                scheduled = event.taskScheduled
                task = pb.ScheduleTaskAction(name=scheduled.name, tags=dict(scheduled.tags))
                copy(scheduled, task, "version", "input", "parentTraceContext")
                self._hub.work.add_activity(self._activity(orchestration, event.eventId, task))
            elif event.HasField("timerCreated"):
                fired = pb.TimerFiredEvent(timerId=event.eventId, fireAt=event.timerCreated.fireAt)
                self._hub.send(orchestration.id, self._hub.event(timerFired=fired), micros(fired.fireAt))
            elif event.HasField("entityOperationCalled") and event.entityOperationCalled.requestId not in ended:
                self._hub.entities.call_again(orchestration, event.entityOperationCalled)
            elif event.HasField("subOrchestrationInstanceCreated"):
                self._rewind_child(orchestration, event, reason)

    def _rewind_child(self, parent: Orchestration, event: pb.HistoryEvent, reason: StringValue | None) -> None:
        """Rewind a failed sub-orchestration, or call it again if it was purged or never started."""
        created = event.subOrchestrationInstanceCreated
        child = self._hub.orchestrations.find(created.instanceId)
        if child is None or child.parent_key != parent.key:
            self._start_child(parent, event.eventId, created)
            return
        child.parent_task = event.eventId
        if child.status == FAILED:
            self._hub.orchestrations.try_again(child, reason)
        elif child.status in FINISHED:
            self._hub.orchestrations.tell_parent(child)
        self._hub.orchestrations.save(child)

    def _consume(self, orchestration: Orchestration, messages: list[Message]) -> None:
        seen = set(messages)
        orchestration.inbox = [message for message in orchestration.inbox if message not in seen]
        self._hub.changes.remove_messages(messages)
