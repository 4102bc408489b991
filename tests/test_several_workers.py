"""Several workers on one task hub, with sample 06: they share the work, and one that leaves or dies takes none along.

Each worker names its own deployment, so that the model sees who asks; who wrote an email, it logs itself.
"""

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Process, Sample, Start, eventually
from durabletask.client import OrchestrationQuery, OrchestrationStatus, TaskHubGrpcClient
from orchestrations import scheduler_client
from scripted_model import ScriptedModel
from test_06_conditionals import NAME, read, text_of

# worker.py, with activities that take turns. The fourth has its effect, and never gets to say so.
STUCK_WORKER = """
import functools, os, sys, threading
sys.path.insert(0, os.getcwd())
import activities, worker
from hosting.program import run as run_program

turn, paths = threading.Lock(), []

def stuck(activity):
    @functools.wraps(activity)  # its types too
    def run(context, data):
        with turn:
            paths.append(activity(context, data))
            if len(paths) > 3:
                threading.Event().wait()
            return paths[-1]
    return run

worker.send_email, worker.handle_spam_email = stuck(activities.send_email), stuck(activities.handle_spam_email)
run_program(worker.main)
"""


class Office:
    """Sample 06 with a number of workers, and a client that hands over a number of emails, every third one spam."""

    def __init__(
        self, sample: Sample, folder: Path, model: ScriptedModel, client: TaskHubGrpcClient, start: Start
    ) -> None:
        self.client = client
        self.contents: dict[str, str] = {}  # of the emails handed over, by their ids
        self._sample, self._folder, self._model, self._start = sample, folder, model, start

    def start_worker(self, name: str, *program: str) -> Process:
        """Start worker.py, or a program in its place; it asks the model under this name."""
        environment = self._sample.environment(
            EMAIL_DIRECTORY=str(self._folder), AZURE_OPENAI_CHAT_DEPLOYMENT_NAME=name, LOG_LEVEL="INFO"
        )
        return self._start(sys.executable, *(program or ["worker.py"]), cwd=self._sample.folder, env=environment)

    def hand_over(self, count: int) -> None:
        """Start an orchestration for each of so many emails; the instance id is the email's."""
        for number in range(count):
            what = "You've won $1,000,000! Click here!!!" if number % 3 == 0 else f"Please send report {number}."
            email_id = f"email-{number:03}"
            content = f"From: writer-{number}@example.com\nSubject: Report {number}\n\n{what}"
            self.contents[email_id] = content
            data = {"email_id": email_id, "email_content": content}
            self.client.schedule_new_orchestration(NAME, input=data, instance_id=email_id)

    def completed(self) -> int:
        """How many orchestrations have."""
        query = OrchestrationQuery(runtime_status=[OrchestrationStatus.COMPLETED])
        return len(self.client.get_all_orchestration_states(query))

    def asked_by(self, name: str) -> int:
        """How many requests the worker of that name has sent to the model."""
        return sum(request["model"] == name for request in list(self._model.requests))

    def written(self, pattern: str = "*") -> dict[Path, tuple[int, int]]:
        """What is in the folders, finished or not: for each file what changes if it is written again."""
        files = [path for path in self._folder.rglob(pattern) if path.is_file()]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}

    def check(self) -> None:
        """Each email was dealt with as it should be, once, and nothing else was written."""
        expected = set()
        for number, (email_id, content) in enumerate(self.contents.items()):
            state = self.client.wait_for_orchestration_completion(email_id, timeout=60)
            assert state
            assert state.runtime_status is OrchestrationStatus.COMPLETED, state.failure_details
            output = str(state.get_output())
            is_spam = number % 3 == 0
            path = self._folder / ("spam" if is_spam else "outbox") / f"{email_id}.eml"
            expected.add(path)
            email = read(path)
            if is_spam:
                assert output == f"Spam: {email['X-Spam-Report']}\nPut aside: {path}"
                assert email["From"] == f"writer-{number}@example.com"
                assert text_of(email).strip() == content
            else:
                verdict, reply = output.split(f"\nReply sent: {path}\n\n")
                assert f"report {number}." in verdict
                assert email["To"] == f"writer-{number}@example.com"
                assert text_of(email).strip() == reply.strip() != ""
        assert self.written().keys() == expected


def effects(worker: Process) -> list[Path]:
    """The emails that a worker wrote, or found written, as often as it did."""
    return [Path(path) for path in re.findall(r"^INFO sample: (\S+\.eml)\n", worker.errors, re.MULTILINE)]


@pytest.fixture
def office(sample: Callable[[str], Sample], tmp_path: Path, model: ScriptedModel, start: Start) -> Iterator[Office]:
    six = sample("06")
    with scheduler_client(six) as client:
        yield Office(six, tmp_path.resolve() / "mail", model, client, start)


def test_one_of_three_workers_is_killed_amid_a_hundred_orchestrations(office: Office, model: ScriptedModel) -> None:
    """It dies with agents that wait for the model, one effect that nobody was told of, and others not begun."""
    model.delay = 0.05
    model.held = threading.Event()
    model.held_for = lambda request: request["model"] == "victim" and office.asked_by("victim") in (8, 9)
    victim = office.start_worker("victim", "-c", STUCK_WORKER)
    others = [office.start_worker(name) for name in ("second", "third")]
    for worker in (victim, *others):
        worker.wait_for("Worker ready")

    office.hand_over(100)
    eventually(lambda: office.asked_by("victim") > 8, "two of the victim's agents wait")
    eventually(lambda: len(effects(victim)) == 4, "an effect of the victim's is not reported")
    eventually(lambda: office.completed() >= 20, "a part of the work is done")
    written = office.written("*.eml")  # not those that are being written
    victim.kill()

    office.check()
    assert len(effects(victim)) == 4
    assert office.asked_by("second")
    assert office.asked_by("third")
    assert all(effects(worker) for worker in others)
    done = [path for worker in others for path in effects(worker)]
    assert len(done) == len(set(done)) == 97  # with the fourth of the victim's, which ran again
    assert effects(victim)[-1] in done
    assert written.items() <= office.written().items()  # and changed nothing


def test_workers_join_and_leave_while_work_waits(office: Office, model: ScriptedModel) -> None:
    model.held = first_answers = threading.Event()
    leaving = office.start_worker("leaving")
    leaving.wait_for("Worker ready")
    office.hand_over(30)
    eventually(lambda: office.asked_by("leaving") == 30, "the only worker has all the work")

    joining = [office.start_worker(name) for name in ("second", "third")]
    for worker in joining:
        worker.wait_for("Worker ready")
    model.held_for = lambda request: request["model"] == "leaving"
    model.held = threading.Event()
    first_answers.set()
    eventually(lambda: office.asked_by("leaving") > 30, "the first worker's agents wait again")
    eventually(lambda: all(effects(worker) for worker in joining), "the others take part")
    leaving.signal(signal.SIGTERM)

    office.check()
    model.held.set()
    assert leaving.wait() == 0, leaving.errors
    assert office.asked_by("second")
    assert office.asked_by("third")
