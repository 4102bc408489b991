"""Orchestrations: started, stepped on by workers, told of events, suspended, ended, restarted, purged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from local_services.scheduler.limits import (
    check_instance_id,
    check_payload,
    check_tags,
    check_text,
    check_version,
    step_failure,
)
from local_services.scheduler.records import (
    COMPLETED,
    CONTINUED_AS_NEW,
    FAILED,
    FINISHED,
    PENDING,
    RUNNING,
    SUSPENDED,
    TERMINATED,
    Activity,
    Message,
    Orchestration,
    Refused,
    micros,
    timestamp,
)

if TYPE_CHECKING:
    from local_services.scheduler.hub import Hub
    from local_services.scheduler.work import Delivery

PURGE_AT_A_TIME = 200  # so that one call does not hold up all others


class Orchestrations:
    """The orchestrations of a hub. Those that are not finished are held in memory."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.live: dict[str, Orchestration] = {}

    def load(self) -> None:
        """Have all steps done that wait to be."""
        for orchestration in self.live.values():
            self._offer(orchestration)

    # What clients ask for --------------------------------------------------------------------------------------

    def start(self, request: pb.CreateInstanceRequest) -> pb.CreateInstanceResponse:
        """Start an orchestration. Refused if there is one of this id, unless the reuse policy allows to replace it."""
        instance_id = request.instanceId or f"{self._hub.next_id():x}"
        check_instance_id(instance_id)
        check_text("orchestration's name", request.name)
        check_version(request.version.value)
        check_tags(request.tags)
        check_payload(f"input of orchestration '{request.name}'", request.input.value)
        replaceable = set(request.orchestrationIdReusePolicy.replaceableStatus)
        if TERMINATED not in replaceable and replaceable & {PENDING, RUNNING, SUSPENDED}:
            problem = "An id reuse policy that replaces running orchestrations must replace terminated ones too."
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, problem)
        if existing := self.find(instance_id):
            if existing.status not in replaceable:
                status = pb.OrchestrationStatus.Name(existing.status).removeprefix("ORCHESTRATION_STATUS_").lower()
                problem = f"There is an orchestration with instance id '{instance_id}' already; it is {status}."
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, problem)
            if existing.status not in FINISHED:
                self._terminate(existing, None, False)  # so that its caller does not wait indefinitely
            self._remove(existing)
        started = pb.ExecutionStartedEvent(name=request.name, tags=dict(request.tags))
        for field in ("version", "input", "parentTraceContext", "scheduledStartTimestamp"):
            if request.HasField(field):
                getattr(started, field).CopyFrom(getattr(request, field))
        self._create(instance_id, started)
        return pb.CreateInstanceResponse(instanceId=instance_id)

    def get(self, request: pb.GetInstanceRequest) -> pb.GetInstanceResponse:
        """An orchestration's state."""
        orchestration = self.find(request.instanceId)
        if orchestration is None:
            return pb.GetInstanceResponse(exists=False)
        return pb.GetInstanceResponse(exists=True, orchestrationState=state(orchestration, request.getInputsAndOutputs))

    def raise_event(self, request: pb.RaiseEventRequest) -> pb.RaiseEventResponse:
        """Raise an external event; one for a finished orchestration is dropped without a word, as by DTS."""
        check_text("event's name", request.name)
        check_payload(f"data of event '{request.name}'", request.input.value)
        if orchestration := self._running(request.instanceId):
            raised = pb.EventRaisedEvent(name=request.name, input=_optional(request, "input"))
            self._hub.send(orchestration.id, self._hub.event(eventRaised=raised))
        return pb.RaiseEventResponse()

    def terminate(self, request: pb.TerminateRequest) -> pb.TerminateResponse:
        """End an orchestration at once, and with `recursive` those that it has called; no worker is needed for it."""
        check_payload("output of the termination", request.output.value)
        if orchestration := self._running(request.instanceId):
            self._terminate(orchestration, _optional(request, "output"), request.recursive)
        return pb.TerminateResponse()

    def suspend(self, request: pb.SuspendRequest) -> pb.SuspendResponse:
        """Suspend an orchestration: a step that a worker has is finished, and what arrives from now on waits."""
        orchestration = self._running(request.instanceId)
        if orchestration and orchestration.status != SUSPENDED:
            check_payload("reason", request.reason.value)
            orchestration.status = SUSPENDED
            suspended = pb.ExecutionSuspendedEvent(input=_optional(request, "reason"))
            self._hub.send(orchestration.id, self._hub.event(executionSuspended=suspended))
            if not orchestration.attempts.token:
                self._hub.work.withdraw(orchestration)
            self._save(orchestration)
        return pb.SuspendResponse()

    def resume(self, request: pb.ResumeRequest) -> pb.ResumeResponse:
        """Have a suspended orchestration continue."""
        orchestration = self._running(request.instanceId)
        if orchestration and orchestration.status == SUSPENDED:
            check_payload("reason", request.reason.value)
            has_begun = orchestration.chunks or orchestration.attempts.token
            orchestration.status = RUNNING if has_begun else PENDING
            resumed = pb.ExecutionResumedEvent(input=_optional(request, "reason"))
            self._hub.send(orchestration.id, self._hub.event(executionResumed=resumed))
            self._save(orchestration)
        return pb.ResumeResponse()

    def restart(self, request: pb.RestartInstanceRequest) -> pb.RestartInstanceResponse:
        """Start a finished orchestration again with its input; under a new id also one that still runs."""
        find = self._existing if request.restartWithNewInstanceId else self._finished
        old = find(request.instanceId)
        started = pb.ExecutionStartedEvent(name=old.name, tags=old.tags)
        if old.version is not None:
            started.version.value = old.version
        if old.input is not None:
            started.input.value = old.input
        instance_id = old.id
        if request.restartWithNewInstanceId:
            instance_id = f"{self._hub.next_id():x}"
        else:
            self._remove(old)
        self._create(instance_id, started)
        return pb.RestartInstanceResponse(instanceId=instance_id)

    def rewind(self, request: pb.RewindInstanceRequest) -> pb.RewindInstanceResponse:
        """Have a failed orchestration try again what failed. Its worker works out from which point of its history."""
        orchestration = self._finished(request.instanceId)
        if orchestration.status != FAILED:
            problem = f"Orchestration '{orchestration.id}' has not failed: only a failed one can be rewound."
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, problem)
        check_payload("reason", request.reason.value)
        orchestration.parent_task = None  # who called it has been told already that it failed
        self._rewind(orchestration, _optional(request, "reason"))
        return pb.RewindInstanceResponse()

    def purge(self, request: pb.PurgeInstancesRequest) -> pb.PurgeInstancesResponse:
        """Forget finished orchestrations; of many that fit a filter only some, to be continued."""
        if request.HasField("purgeInstanceFilter"):
            ids = self._hub.records.finished(request.purgeInstanceFilter, PURGE_AT_A_TIME)
        else:
            ids = [request.instanceId] if request.HasField("instanceId") else list(request.instanceBatch.instanceIds)
        purged = sum(self._purge(instance_id, request.recursive) for instance_id in ids)
        complete = not request.HasField("purgeInstanceFilter") or len(ids) < PURGE_AT_A_TIME
        return pb.PurgeInstancesResponse(deletedInstanceCount=purged, isComplete=BoolValue(value=complete))

    # Steps -----------------------------------------------------------------------------------------------------

    def arrive(self, orchestration: Orchestration, message: Message) -> None:
        """Let an orchestration see an event in its next step."""
        orchestration.inbox.append(message)
        self._offer(orchestration)

    def _offer(self, orchestration: Orchestration) -> None:
        if orchestration.inbox and orchestration.status != SUSPENDED:
            self._hub.work.offer(orchestration)

    def fill(self, item: pb.OrchestratorRequest, orchestration: Orchestration, delivery: Delivery) -> None:
        """Put the next step into a work item."""
        inbox = _in_order(orchestration)
        if any(message.event.HasField("executionRewound") for message in inbox):
            # The SDK wants to see this event alone: the worker answers with a new history, in which nothing failed.
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
        item.pastEvents.extend(self._history(orchestration))
        item.newEvents.extend(delivery.events)
        if orchestration.own_trace is not None:
            item.orchestrationTraceContext.CopyFrom(orchestration.own_trace)

    def complete(self, orchestration: Orchestration, response: pb.OrchestratorResponse, delivery: Delivery) -> None:
        """Store a step: the events that it saw, and what it wants done."""
        self._consume(orchestration, delivery.messages)
        events = delivery.events
        if orchestration.status == PENDING:
            orchestration.status = RUNNING
        if details := step_failure(response):
            self._finish(orchestration, FAILED, None, details, events)
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
            self._append(orchestration, events)
            self._save(orchestration)
            self._offer(orchestration)
        elif ending.orchestrationStatus == CONTINUED_AS_NEW:
            self._continue_as_new(orchestration, ending)
        else:
            details = ending.failureDetails if ending.HasField("failureDetails") else None
            self._finish(orchestration, ending.orchestrationStatus, _text(ending, "result"), details, events)

    def fail(self, orchestration: Orchestration, details: pb.TaskFailureDetails) -> None:
        """End an orchestration that no worker can step on."""
        self._finish(orchestration, FAILED, None, details, self._unseen(orchestration))

    def _act(self, orchestration: Orchestration, action: pb.OrchestratorAction, events: list[pb.HistoryEvent]) -> None:
        """Do what a step asks for, and note it in the history."""
        hub, event = self._hub, pb.HistoryEvent(eventId=action.id, timestamp=timestamp(self._hub.now))
        events.append(event)
        match action.WhichOneof("orchestratorActionType"):
            case "scheduleTask":
                task = action.scheduleTask
                _copy(task, event.taskScheduled, "version", "input", "parentTraceContext")
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
                raised = pb.EventRaisedEvent(name=sent.name, input=_optional(sent, "data"))
                _copy(raised, event.eventSent, "input")
                if sent.instance.instanceId in self.live:
                    hub.send(sent.instance.instanceId, hub.event(eventRaised=raised))
            case "terminateOrchestration":
                events.pop()  # the history has no event for it
                target = self.live.get(action.terminateOrchestration.instanceId)
                if target and target is not orchestration:
                    self._terminate(
                        target,
                        _optional(action.terminateOrchestration, "reason"),
                        action.terminateOrchestration.recurse,
                    )
            case "sendEntityMessage":
                kind = action.sendEntityMessage.WhichOneof("EntityMessageType")
                getattr(event, kind).CopyFrom(getattr(action.sendEntityMessage, kind))
                hub.entities.told(orchestration, event)

    def _activity(self, caller: Orchestration, task_id: int, task: pb.ScheduleTaskAction) -> Activity:
        request = pb.ActivityRequest(name=task.name, taskId=task_id, tags=dict(task.tags))
        _copy(task, request, "version", "input", "parentTraceContext")
        if not task.HasField("version") and caller.version is not None:
            request.version.value = caller.version  # what it is called by decides, for workers that ask for versions
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
        _copy(call, created, "version", "input", "parentTraceContext")
        created.tags.update(call.tags)
        self._start_child(parent, task_id, created)

    def _start_child(
        self, parent: Orchestration, task_id: int, created: pb.SubOrchestrationInstanceCreatedEvent
    ) -> None:
        instance_id = created.instanceId
        existing = self.find(instance_id)
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
            self._remove(existing)
        started = pb.ExecutionStartedEvent(name=created.name, tags=dict(created.tags))
        _copy(created, started, "version", "input", "parentTraceContext")
        self._create(instance_id, started, (parent.id, parent.key, task_id))

    # Beginnings and ends ---------------------------------------------------------------------------------------

    def _create(
        self,
        instance_id: str,
        started: pb.ExecutionStartedEvent,
        parent: tuple[str | None, int | None, int | None] = (None, None, None),
    ) -> None:
        """Begin an execution. `parent` is the id and key of the one that calls it, and as which of its tasks."""
        now = self._hub.now
        parent_id, parent_key, parent_task = parent
        start_at = micros(started.scheduledStartTimestamp) if started.HasField("scheduledStartTimestamp") else None
        orchestration = Orchestration(
            self._hub.next_id(),
            instance_id,
            started.name,
            _text(started, "version"),
            PENDING,
            created=now,
            updated=now,
            start_at=start_at,
            tags=dict(started.tags),
            input=_text(started, "input"),
            caller_trace=_optional(started, "parentTraceContext"),
            parent=parent_id,
            parent_key=parent_key,
            parent_task=parent_task,
            history=[],
        )
        started.orchestrationInstance.instanceId = instance_id
        started.orchestrationInstance.executionId.value = orchestration.execution
        if parent_id is not None:
            info = started.parentInstance
            info.taskScheduledId = parent_task or 0
            info.orchestrationInstance.instanceId = parent_id
            info.orchestrationInstance.executionId.value = f"{parent_key:x}"
            if caller := self.find(parent_id):
                info.name.value = caller.name
        self.live[instance_id] = orchestration
        self._save(orchestration)
        self._hub.send(instance_id, self._hub.event(executionStarted=started), start_at)

    def _continue_as_new(self, orchestration: Orchestration, ending: pb.CompleteOrchestrationAction) -> None:
        """Begin anew under another key, with a new input, and with the events that nobody has waited for yet."""
        # What else has arrived answers the old execution: the new one may have asked under the same number.
        late = [
            event for message in orchestration.inbox if (event := message.event).WhichOneof("eventType") in _CARRIED
        ]
        started = pb.ExecutionStartedEvent(name=orchestration.name, tags=orchestration.tags)
        if orchestration.caller_trace is not None:
            started.parentTraceContext.CopyFrom(orchestration.caller_trace)
        if (version := _text(ending, "newVersion") or orchestration.version) is not None:
            started.version.value = version
        if ending.HasField("result"):
            started.input.CopyFrom(ending.result)
        created, custom_status = orchestration.created, orchestration.custom_status
        self._remove(orchestration)
        self._create(
            orchestration.id, started, (orchestration.parent, orchestration.parent_key, orchestration.parent_task)
        )
        new = self.live[orchestration.id]
        new.created, new.custom_status = created, custom_status
        for event in (*ending.carryoverEvents, *late):
            self._hub.send(new.id, event)
        if orchestration.status == SUSPENDED:
            new.status = SUSPENDED
            self._hub.work.withdraw(new)

    def _finish(
        self,
        orchestration: Orchestration,
        status: int,
        output: str | None,
        details: pb.TaskFailureDetails | None,
        events: list[pb.HistoryEvent],
    ) -> None:
        """End an orchestration after these last events, and tell who waits for it."""
        completed = pb.ExecutionCompletedEvent(orchestrationStatus=status, failureDetails=details)  # pyright: ignore[reportArgumentType]
        if output is not None:
            completed.result.value = output
        orchestration.status, orchestration.output, orchestration.failure = status, output, details
        orchestration.completed = self._hub.now
        self._append(orchestration, [*events, self._hub.event(executionCompleted=completed)])
        self._save(orchestration)
        self._leave(orchestration)
        self._tell_parent(orchestration)

    def _leave(self, orchestration: Orchestration) -> None:
        """Give up all that only a running orchestration has."""
        self._hub.work.withdraw(orchestration)
        self._hub.take_back([*orchestration.inbox, *orchestration.timers.values()])
        orchestration.inbox.clear()
        orchestration.timers.clear()
        if self.live.get(orchestration.id) is orchestration:
            del self.live[orchestration.id]
        self._hub.entities.release(orchestration.id)

    def _tell_parent(self, child: Orchestration) -> None:
        parent = self.live.get(child.parent or "")
        task = child.parent_task
        if parent is None or parent.key != child.parent_key or task is None:
            return
        if child.status == COMPLETED:
            completed = pb.SubOrchestrationInstanceCompletedEvent(taskScheduledId=task)
            if child.output is not None:
                completed.result.value = child.output
            self._hub.send(parent.id, self._hub.event(subOrchestrationInstanceCompleted=completed))
        else:
            details = child.failure or pb.TaskFailureDetails(
                errorType="SubOrchestrationEnded", errorMessage=f"Sub-orchestration '{child.id}' was terminated."
            )
            failed = pb.SubOrchestrationInstanceFailedEvent(taskScheduledId=task, failureDetails=details)
            self._hub.send(parent.id, self._hub.event(subOrchestrationInstanceFailed=failed))

    def _terminate(self, orchestration: Orchestration, output: StringValue | None, recurse: bool) -> None:
        terminated = pb.ExecutionTerminatedEvent(input=output, recurse=recurse)
        events = [*self._unseen(orchestration), self._hub.event(executionTerminated=terminated)]
        self._finish(orchestration, TERMINATED, output.value if output else None, None, events)
        if recurse:
            for child in [child for child in self.live.values() if child.parent_key == orchestration.key]:
                self._terminate(child, output, recurse)

    def _purge(self, instance_id: str, recursive: bool) -> int:
        """Forget a finished orchestration, and with `recursive` those that it called; returns how many."""
        orchestration = self.find(instance_id)
        if orchestration is None or orchestration.status not in FINISHED:
            return 0
        self._remove(orchestration)
        children = self._hub.records.children(orchestration.key) if recursive else []
        return 1 + sum(self._purge(child, recursive) for child in children)

    def _remove(self, orchestration: Orchestration) -> None:
        """Forget an execution, with all that belongs to it."""
        self._leave(orchestration)
        self._hub.work.remove_activities(orchestration.key)
        self._hub.changes.remove_execution(orchestration.key)

    # Rewinding -------------------------------------------------------------------------------------------------

    def _rewind(self, orchestration: Orchestration, reason: StringValue | None) -> None:
        self._revive(orchestration)
        self._hub.send(orchestration.id, self._hub.event(executionRewound=pb.ExecutionRewoundEvent(reason=reason)))

    def _revive(self, orchestration: Orchestration) -> None:
        orchestration.status, orchestration.completed = RUNNING, None
        orchestration.output = orchestration.failure = None
        self.live[orchestration.id] = orchestration
        self._save(orchestration)

    def _replace_history(self, old: Orchestration, history: list[pb.HistoryEvent]) -> None:
        """Go on from the history that a rewinding worker has made: without what failed."""
        late = [message.event for message in old.inbox]
        self._remove(old)
        new = Orchestration(
            **{name: getattr(old, name) for name in Orchestration.__slots__ if name not in _NEW_WITH_EACH_KEY},
            key=self._hub.next_id(),
            history=[],
        )
        self._revive(new)
        self._append(new, history)
        for child_id in self._hub.records.children(old.key):
            if child := self.find(child_id):
                child.parent_key = new.key
                self._hub.changes.orchestrations[child.key] = child
        reason = next(
            (event.executionRewound for event in reversed(history) if event.HasField("executionRewound")), None
        )
        self._begin_again(new, history, late, _optional(reason, "reason") if reason else None)
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
        """Do once more what the history waits for: all of it was given up when the orchestration failed.

        But for what has ended late: after the orchestration was told to try again.
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
            if event.HasField("taskScheduled"):
                scheduled = event.taskScheduled
                task = pb.ScheduleTaskAction(name=scheduled.name, tags=dict(scheduled.tags))
                _copy(scheduled, task, "version", "input", "parentTraceContext")
                self._hub.work.add_activity(self._activity(orchestration, event.eventId, task))
            elif event.HasField("timerCreated"):
                fired = pb.TimerFiredEvent(timerId=event.eventId, fireAt=event.timerCreated.fireAt)
                self._hub.send(orchestration.id, self._hub.event(timerFired=fired), micros(fired.fireAt))
            elif event.HasField("entityOperationCalled") and event.entityOperationCalled.requestId not in ended:
                self._hub.entities.call_again(orchestration, event.entityOperationCalled)
            elif event.HasField("subOrchestrationInstanceCreated"):
                self._rewind_child(orchestration, event, reason)

    def _rewind_child(self, parent: Orchestration, event: pb.HistoryEvent, reason: StringValue | None) -> None:
        """Rewind a sub-orchestration that failed, or call it again if it was purged, or never begun."""
        created = event.subOrchestrationInstanceCreated
        child = self.find(created.instanceId)
        if child is None or child.parent_key != parent.key:
            self._start_child(parent, event.eventId, created)
            return
        child.parent_task = event.eventId
        if child.status == FAILED:
            self._rewind(child, reason)
        elif child.status in FINISHED:
            self._tell_parent(child)
        self._save(child)

    # Helpers ---------------------------------------------------------------------------------------------------

    def find(self, instance_id: str) -> Orchestration | None:
        """An orchestration, finished or not."""
        if orchestration := self.live.get(instance_id):
            return orchestration
        changes = self._hub.changes  # of this call: they are not stored yet
        if changed := [changed for changed in changes.orchestrations.values() if changed.id == instance_id]:
            return changed[0]
        stored = self._hub.records.orchestration(instance_id)
        return stored if stored and stored.key not in changes.removed_executions else None

    def _existing(self, instance_id: str) -> Orchestration:
        """An orchestration, finished or not. Raises Refused if there is none of this id."""
        if orchestration := self.find(instance_id):
            return orchestration
        raise Refused(grpc.StatusCode.NOT_FOUND, f"There is no orchestration with instance id '{instance_id}'.")

    def _running(self, instance_id: str) -> Orchestration | None:
        """A running orchestration, or None if it is finished. Raises Refused if there is none of this id."""
        orchestration = self._existing(instance_id)
        return None if orchestration.status in FINISHED else orchestration

    def _finished(self, instance_id: str) -> Orchestration:
        """A finished orchestration. Raises Refused if it is not, or there is none of this id."""
        orchestration = self._existing(instance_id)
        if orchestration.status in FINISHED:
            return orchestration
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"Orchestration '{instance_id}' has not finished.")

    def _unseen(self, orchestration: Orchestration) -> list[pb.HistoryEvent]:
        """The events that no step has seen, for the history of one that ends without another step."""
        events = [message.event for message in _in_order(orchestration)]
        return [self._hub.event(orchestratorStarted=pb.OrchestratorStartedEvent()), *events]

    def _history(self, orchestration: Orchestration) -> list[pb.HistoryEvent]:
        if orchestration.history is None:
            orchestration.history = self._hub.records.history(orchestration.key)
        return orchestration.history

    def _append(self, orchestration: Orchestration, events: list[pb.HistoryEvent]) -> None:
        self._history(orchestration).extend(events)
        self._hub.changes.history.append((orchestration.key, orchestration.chunks, events))
        orchestration.chunks += 1

    def _save(self, orchestration: Orchestration) -> None:
        orchestration.updated = self._hub.now
        self._hub.changes.orchestrations[orchestration.key] = orchestration

    def _consume(self, orchestration: Orchestration, messages: list[Message]) -> None:
        seen = set(messages)
        orchestration.inbox = [message for message in orchestration.inbox if message not in seen]
        self._hub.changes.remove_messages(messages)


def _in_order(orchestration: Orchestration) -> list[Message]:
    """What has arrived, with the start first: the SDK does not take an event that comes before it, of a delayed one."""
    return sorted(orchestration.inbox, key=lambda message: not message.event.HasField("executionStarted"))


_CARRIED = ("eventRaised", "executionSuspended", "executionResumed")
_NEW_WITH_EACH_KEY = ("key", "history", "chunks", "inbox", "timers", "attempts")


def state(orchestration: Orchestration, payloads: bool) -> pb.OrchestrationState:
    """An orchestration as a client sees it, with its input and output or without."""
    result = pb.OrchestrationState(
        instanceId=orchestration.id,
        name=orchestration.name,
        orchestrationStatus=orchestration.status,  # pyright: ignore[reportArgumentType]
        createdTimestamp=timestamp(orchestration.created),
        lastUpdatedTimestamp=timestamp(orchestration.updated),
        failureDetails=orchestration.failure,
        tags=orchestration.tags,
    )
    result.executionId.value = orchestration.execution
    if orchestration.completed is not None:
        result.completedTimestamp.CopyFrom(timestamp(orchestration.completed))
    if orchestration.start_at is not None:
        result.scheduledStartTimestamp.CopyFrom(timestamp(orchestration.start_at))
    if orchestration.version is not None:
        result.version.value = orchestration.version
    if orchestration.parent is not None:
        result.parentInstanceId.value = orchestration.parent
    if orchestration.custom_status is not None:
        result.customStatus.value = orchestration.custom_status
    if payloads and orchestration.input is not None:
        result.input.value = orchestration.input
    if payloads and orchestration.output is not None:
        result.output.value = orchestration.output
    return result


def chunks_of(events: Iterable[pb.HistoryEvent], limit: int) -> Iterator[pb.HistoryChunk]:
    """A history in parts that a client with default options can receive: each about `limit` bytes, or one event."""
    chunk, size = pb.HistoryChunk(), 0
    for event in events:
        if size and size + event.ByteSize() > limit:
            yield chunk
            chunk, size = pb.HistoryChunk(), 0
        chunk.events.append(event)
        size += event.ByteSize()
    if size:
        yield chunk


def _optional(message: Any, field: str) -> Any:
    """The field, or None if it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def _text(message: Any, field: str) -> str | None:
    """The text of a field, or None if it is not set."""
    return getattr(message, field).value if message.HasField(field) else None


def _copy(source: Any, target: Any, *fields: str) -> None:
    """Copy the fields that are set."""
    for field in fields:
        if (value := _optional(source, field)) is not None:
            getattr(target, field).CopyFrom(value)
