"""What a run has left: in the scheduler, in the model's journal, and in the folder of its effects."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from azure.identity import DefaultAzureCredential
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.entities import EntityInstanceId
from durabletask.history import EntityOperationCompletedEvent

from runner.prove.stops import JOURNAL

SILENT = logging.getLogger("runner.prove")  # else the SDK prints what it does

Call = tuple[str, str]  # whom, and what was said last


@dataclass(frozen=True)
class Stored:
    """What the scheduler has.

    Attributes:
        answers: of 01 to 03: which agent was asked what, with its answer, or None; of 04 to 07 only answers.
        status: of the orchestration; empty if there is none.
        said: its custom status.
    """

    answers: list[tuple[Call, str | None]] = field(default_factory=list)
    status: str = ""
    output: Any = None
    said: str = ""

    @property
    def texts(self) -> list[str]:
        """The answers that say something."""
        return [text for _, text in self.answers if text]


class Scheduler:
    """Looks at a task hub from outside."""

    def __init__(self, address: str, hub: str) -> None:
        self._address, self._hub = address, hub

    def connect(self) -> DurableTaskSchedulerClient:
        """A client, to use in a `with`."""
        secure = urlsplit(self._address).scheme == "https"
        return DurableTaskSchedulerClient(
            host_address=self._address,
            taskhub=self._hub,
            token_credential=DefaultAzureCredential() if secure else None,
            secure_channel=secure,
            logger=SILENT,
        )

    def conversations(self, agents: set[str], key: str) -> Stored:
        """What was said to these agents under this key."""
        answers: list[tuple[Call, str | None]] = []
        with self.connect() as client:
            for agent in sorted(agents):
                entity = client.get_entity(EntityInstanceId(f"dafx-{agent.lower()}", key))
                state = (entity.get_state() if entity else None) or "{}"
                turns = json.loads(str(state)).get("data", {}).get("conversationHistory", [])
                said = {turn["correlationId"]: text_of(turn) for turn in turns if turn["$type"] == "response"}
                answers += [
                    ((agent, text_of(turn)), said.get(turn["correlationId"]))
                    for turn in turns
                    if turn["$type"] == "request"
                ]
        return Stored(answers)

    def has_question(self, agents: set[str], key: str) -> bool:
        """Whether a question waits for one of these agents."""
        with self.connect() as client:
            found = [client.get_entity(EntityInstanceId(f"dafx-{agent.lower()}", key)) for agent in agents]
        return any(entity and (entity.backlog_queue_size or entity.get_state()) for entity in found)

    def orchestration(self, instance: str) -> Stored:
        """An orchestration, and the answers in its history."""
        with self.connect() as client:
            state = client.get_orchestration_state(instance)
            history = client.get_orchestration_history(instance) if state else []
        if not state:
            return Stored()
        outputs = [event.output for event in history if isinstance(event, EntityOperationCompletedEvent)]
        answers: list[tuple[Call, str | None]] = [
            (("", ""), text_of(json.loads(output))) for output in outputs if output
        ]
        said = str(state.get_custom_status() or "")
        return Stored(answers, state.runtime_status.name, state.get_output() or failure_of(state), said)

    def decide(self, instance: str, draft: int) -> None:
        """What the person of 07 does: reject the first draft, approve the second."""
        feedback = "Make it shorter, and add an example."
        decision = {"approved": True} if draft > 1 else {"approved": False, "feedback": feedback}
        with self.connect() as client:
            client.raise_orchestration_event(instance, "HumanApproval", data={**decision, "attempt": draft})

    def approve(self, call: str) -> None:
        """What the person of 03 does: approve the call of a tool."""
        with self.connect() as client:
            state = client.get_orchestration_state(call)
            asked = json.loads(str(state and state.get_custom_status()).partition("\n")[2])
            client.raise_orchestration_event(call, "HumanApproval", data={"approved": True, "call": asked["call"]})


def failure_of(state: Any) -> str:
    """Why it failed; empty if it did not."""
    return state.failure_details.message if state.failure_details else ""


def text_of(value: Any) -> str:
    """The text in a message, in a turn, or in an answer as the history has it."""
    return "".join(_texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(text := value.get("text"), str):
            yield text
        else:
            yield from (text for part in value.values() for text in _texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _texts(part))


class Journal:
    """What the model was asked, and what it answered."""

    def __init__(self, folder: Path) -> None:
        path = folder / JOURNAL
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.calls: dict[int, Call] = {line["number"]: tuple(line["asked"]) for line in lines if "asked" in line}
        self.answers: dict[int, str] = {line["number"]: line["answered"] for line in lines if "answered" in line}

    def finished(self, texts: list[str]) -> set[Call]:
        """The calls whose answers are among these texts."""
        return {self.calls[number] for number, text in self.answers.items() if text and text in texts}


def effects_in(folder: Path) -> dict[str, tuple[int, int]]:
    """The files that activities and tools have written; of each what changes if it is written again."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}
