"""Orchestrations: starting, events, suspending, ending, restarting, rewinding, purging. Their steps: stepping.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import durabletask.internal.orchestrator_service_pb2 as pb
import grpc
from google.protobuf.wrappers_pb2 import BoolValue, StringValue

from local_services.scheduler.limits import (
    EVENTS_LIMIT,
    LARGE_EVENT,
    check_instance_id,
    check_payload,
    check_tags,
    check_text,
    check_version,
)
from local_services.scheduler.records import (
    COMPLETED,
    FAILED,
    FINISHED,
    PENDING,
    RUNNING,
    SUSPENDED,
    TERMINATED,
    Message,
    Orchestration,
    Refused,
    in_order,
    micros,
    optional,
    text,
    timestamp,
)

if TYPE_CHECKING:
    from local_services.scheduler.hub import Hub

PURGE_AT_A_TIME = 200  # so that one call does not delay all others


class Orchestrations:
    """The orchestrations of a hub. Those that are not finished are held in memory."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.live: dict[str, Orchestration] = {}

    def load(self) -> None:
        """Offer all waiting steps to workers."""
        for orchestration in self.live.values():
            self.offer(orchestration)

    # Calls of clients ------------------------------------------------------------------------------------------

    def start(self, request: pb.CreateInstanceRequest) -> pb.CreateInstanceResponse:
        """Start an orchestration. Raises Refused if the id exists, unless the reuse policy allows replacing it."""
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
                problem = f"An orchestration with instance id '{instance_id}' exists already; it is {status}."
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, problem)
            if existing.status not in FINISHED:
                self.end(existing, None, False)  # so that its caller does not wait indefinitely
            self.remove(existing)
        started = pb.ExecutionStartedEvent(name=request.name, tags=dict(request.tags))
        for field in ("version", "input", "parentTraceContext", "scheduledStartTimestamp"):
            if request.HasField(field):
                getattr(started, field).CopyFrom(getattr(request, field))
        self.create(instance_id, started)
        return pb.CreateInstanceResponse(instanceId=instance_id)

    def get(self, request: pb.GetInstanceRequest) -> pb.GetInstanceResponse:
        """An orchestration's state."""
        orchestration = self.find(request.instanceId)
        if orchestration is None:
            return pb.GetInstanceResponse(exists=False)
        return pb.GetInstanceResponse(exists=True, orchestrationState=state(orchestration, request.getInputsAndOutputs))

    def raise_event(self, request: pb.RaiseEventRequest) -> pb.RaiseEventResponse:
        """Raise an external event; one for a finished orchestration is silently dropped, like in DTS."""
        check_text("event's name", request.name)
        check_payload(f"data of event '{request.name}'", request.input.value)
        if orchestration := self._running(request.instanceId):
            self._check_room(orchestration, len(request.input.value))
            raised = pb.EventRaisedEvent(name=request.name, input=optional(request, "input"))
            self._hub.send(orchestration.id, self._hub.event(eventRaised=raised))
        return pb.RaiseEventResponse()

    def _check_room(self, orchestration: Orchestration, size: int) -> None:
        """Raise Refused if a large event would make the history too large for a worker: its sender must know."""
        if size > LARGE_EVENT:
            events = [*self.history(orchestration), *(message.event for message in orchestration.inbox)]
            if (total := size + sum(event.ByteSize() for event in events)) > EVENTS_LIMIT:
                problem = (
                    f"With this event, the orchestration's history has {total:,} bytes; {EVENTS_LIMIT:,} are allowed."
                )
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)

    def terminate(self, request: pb.TerminateRequest) -> pb.TerminateResponse:
        """End an orchestration immediately, and with `recursive` those that it has called. Needs no worker."""
        check_payload("output of the termination", request.output.value)
        if orchestration := self._running(request.instanceId):
            self.end(orchestration, optional(request, "output"), request.recursive)
        return pb.TerminateResponse()

    def suspend(self, request: pb.SuspendRequest) -> pb.SuspendResponse:
        """Suspend an orchestration: a worker finishes the step that it has; events that arrive later wait."""
        orchestration = self._running(request.instanceId)
        if orchestration and orchestration.status != SUSPENDED:
            check_payload("reason", request.reason.value)
            orchestration.status = SUSPENDED
            suspended = pb.ExecutionSuspendedEvent(input=optional(request, "reason"))
            self._hub.send(orchestration.id, self._hub.event(executionSuspended=suspended))
            if not orchestration.attempts.token:
                self._hub.work.withdraw(orchestration)
            self.save(orchestration)
        return pb.SuspendResponse()

    def resume(self, request: pb.ResumeRequest) -> pb.ResumeResponse:
        """Let a suspended orchestration continue."""
        orchestration = self._running(request.instanceId)
        if orchestration and orchestration.status == SUSPENDED:
            check_payload("reason", request.reason.value)
            has_begun = orchestration.chunks or orchestration.attempts.token
            orchestration.status = RUNNING if has_begun else PENDING
            resumed = pb.ExecutionResumedEvent(input=optional(request, "reason"))
            self._hub.send(orchestration.id, self._hub.event(executionResumed=resumed))
            self.save(orchestration)
        return pb.ResumeResponse()

    def restart(self, request: pb.RestartInstanceRequest) -> pb.RestartInstanceResponse:
        """Start a finished orchestration again with its input; with a new id also a running one."""
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
            self.remove(old)
        self.create(instance_id, started)
        return pb.RestartInstanceResponse(instanceId=instance_id)

    def rewind(self, request: pb.RewindInstanceRequest) -> pb.RewindInstanceResponse:
        """Let a failed orchestration retry what failed. Its worker decides from which point of the history."""
        orchestration = self._finished(request.instanceId)
        if orchestration.status != FAILED:
            problem = f"Orchestration '{orchestration.id}' has not failed: only a failed one can be rewound."
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, problem)
        check_payload("reason", request.reason.value)
        orchestration.parent_task = None  # its caller has already seen that it failed
        self.try_again(orchestration, optional(request, "reason"))
        return pb.RewindInstanceResponse()

    def purge(self, request: pb.PurgeInstancesRequest) -> pb.PurgeInstancesResponse:
        """Remove finished orchestrations; with a filter at most PURGE_AT_A_TIME, and the caller asks again."""
        if request.HasField("purgeInstanceFilter"):
            ids = self._hub.records.finished(request.purgeInstanceFilter, PURGE_AT_A_TIME)
        else:
            ids = [request.instanceId] if request.HasField("instanceId") else list(request.instanceBatch.instanceIds)
        purged = sum(self._purge(instance_id, request.recursive) for instance_id in ids)
        complete = not request.HasField("purgeInstanceFilter") or len(ids) < PURGE_AT_A_TIME
        return pb.PurgeInstancesResponse(deletedInstanceCount=purged, isComplete=BoolValue(value=complete))

    # Steps -----------------------------------------------------------------------------------------------------

    def arrive(self, orchestration: Orchestration, message: Message) -> None:
        """Deliver an event with the orchestration's next step."""
        orchestration.inbox.append(message)
        self.offer(orchestration)

    def offer(self, orchestration: Orchestration) -> None:
        if orchestration.inbox and orchestration.status != SUSPENDED:
            self._hub.work.offer(orchestration)

    def fail(self, orchestration: Orchestration, details: pb.TaskFailureDetails) -> None:
        """Fail an orchestration without a worker."""
        self.finish(orchestration, FAILED, None, details, self._unseen(orchestration))

    # Beginnings and ends ---------------------------------------------------------------------------------------

    def create(
        self,
        instance_id: str,
        started: pb.ExecutionStartedEvent,
        parent: tuple[str | None, int | None, int | None] = (None, None, None),
    ) -> None:
        """Begin an execution. `parent` is the caller's id and key, and the number of the caller's task."""
        now = self._hub.now
        parent_id, parent_key, parent_task = parent
        start_at = micros(started.scheduledStartTimestamp) if started.HasField("scheduledStartTimestamp") else None
        orchestration = Orchestration(
            self._hub.next_id(),
            instance_id,
            started.name,
            text(started, "version"),
            PENDING,
            created=now,
            updated=now,
            start_at=start_at,
            tags=dict(started.tags),
            input=text(started, "input"),
            caller_trace=optional(started, "parentTraceContext"),
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
        self.save(orchestration)
        self._hub.send(instance_id, self._hub.event(executionStarted=started), start_at)

    def finish(
        self,
        orchestration: Orchestration,
        status: int,
        output: str | None,
        details: pb.TaskFailureDetails | None,
        events: list[pb.HistoryEvent],
    ) -> None:
        """End an orchestration after these last events, and tell its parent."""
        completed = pb.ExecutionCompletedEvent(orchestrationStatus=status, failureDetails=details)  # pyright: ignore[reportArgumentType]
        if output is not None:
            completed.result.value = output
        orchestration.status, orchestration.output, orchestration.failure = status, output, details
        orchestration.completed = self._hub.now
        self.append(orchestration, [*events, self._hub.event(executionCompleted=completed)])
        self.save(orchestration)
        self._leave(orchestration)
        self.tell_parent(orchestration)

    def _leave(self, orchestration: Orchestration) -> None:
        """Remove everything that only a running orchestration has."""
        self._hub.work.withdraw(orchestration)
        self._hub.take_back([*orchestration.inbox, *orchestration.timers.values()])
        orchestration.inbox.clear()
        orchestration.timers.clear()
        if self.live.get(orchestration.id) is orchestration:
            del self.live[orchestration.id]
        self._hub.entities.release(orchestration.id)

    def tell_parent(self, child: Orchestration) -> None:
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

    def end(self, orchestration: Orchestration, output: StringValue | None, recurse: bool) -> None:
        terminated = pb.ExecutionTerminatedEvent(input=output, recurse=recurse)
        events = [*self._unseen(orchestration), self._hub.event(executionTerminated=terminated)]
        self.finish(orchestration, TERMINATED, output.value if output else None, None, events)
        if recurse:
            for child in [child for child in self.live.values() if child.parent_key == orchestration.key]:
                self.end(child, output, recurse)

    def _purge(self, instance_id: str, recursive: bool) -> int:
        """Remove a finished orchestration, and with `recursive` those that it called; returns how many."""
        orchestration = self.find(instance_id)
        if orchestration is None or orchestration.status not in FINISHED:
            return 0
        self.remove(orchestration)
        children = self._hub.records.children(orchestration.key) if recursive else []
        return 1 + sum(self._purge(child, recursive) for child in children)

    def remove(self, orchestration: Orchestration) -> None:
        """Remove an execution, and everything that belongs to it."""
        self._leave(orchestration)
        self._hub.work.remove_activities(orchestration.key)
        self._hub.changes.remove_execution(orchestration.key)

    # Rewinding -------------------------------------------------------------------------------------------------

    def try_again(self, orchestration: Orchestration, reason: StringValue | None) -> None:
        self.revive(orchestration)
        self._hub.send(orchestration.id, self._hub.event(executionRewound=pb.ExecutionRewoundEvent(reason=reason)))

    def revive(self, orchestration: Orchestration) -> None:
        orchestration.status, orchestration.completed = RUNNING, None
        orchestration.output = orchestration.failure = None
        self.live[orchestration.id] = orchestration
        self.save(orchestration)

    # Helpers ---------------------------------------------------------------------------------------------------

    def find(self, instance_id: str) -> Orchestration | None:
        """An orchestration, finished or not."""
        if orchestration := self.live.get(instance_id):
            return orchestration
        changes = self._hub.changes  # this call's changes are not stored yet
        if changed := [changed for changed in changes.orchestrations.values() if changed.id == instance_id]:
            return changed[0]
        stored = self._hub.records.orchestration(instance_id)
        return stored if stored and stored.key not in changes.removed_executions else None

    def _existing(self, instance_id: str) -> Orchestration:
        """An orchestration, finished or not. Raises Refused if there is none with this id."""
        if orchestration := self.find(instance_id):
            return orchestration
        raise Refused(grpc.StatusCode.NOT_FOUND, f"There is no orchestration with instance id '{instance_id}'.")

    def _running(self, instance_id: str) -> Orchestration | None:
        """A running orchestration, or None if it is finished. Raises Refused if there is none with this id."""
        orchestration = self._existing(instance_id)
        return None if orchestration.status in FINISHED else orchestration

    def _finished(self, instance_id: str) -> Orchestration:
        """A finished orchestration. Raises Refused if it is not finished, or there is none with this id."""
        orchestration = self._existing(instance_id)
        if orchestration.status in FINISHED:
            return orchestration
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"Orchestration '{instance_id}' has not finished.")

    def _unseen(self, orchestration: Orchestration) -> list[pb.HistoryEvent]:
        """The events that no step has seen, for the history of an orchestration that ends without another step."""
        events = [message.event for message in in_order(orchestration)]
        return [self._hub.event(orchestratorStarted=pb.OrchestratorStartedEvent()), *events]

    def history(self, orchestration: Orchestration) -> list[pb.HistoryEvent]:
        if orchestration.history is None:
            orchestration.history = self._hub.records.history(orchestration.key)
        return orchestration.history

    def append(self, orchestration: Orchestration, events: list[pb.HistoryEvent]) -> None:
        self.history(orchestration).extend(events)
        self._hub.changes.history.append((orchestration.key, orchestration.chunks, events))
        orchestration.chunks += 1

    def save(self, orchestration: Orchestration) -> None:
        orchestration.updated = self._hub.now
        self._hub.changes.orchestrations[orchestration.key] = orchestration


def state(orchestration: Orchestration, payloads: bool) -> pb.OrchestrationState:
    """An orchestration in the protocol's form, with or without its input and output."""
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
