"""The Dockerfile and the Compose file, checked without a Docker engine: the tests read them, and do what they say."""

import json
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, Sample, Start, eventually
from scripted_model import ScriptedModel

SAMPLES = sorted(path.name for path in ROOT.glob("[0-9][0-9]_*"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
WORKER: dict[str, Any] = COMPOSE["services"]["worker"]


def instructions(name: str) -> list[str]:
    """The arguments of an instruction in the Dockerfile, line by line."""
    return re.findall(rf"^{name} (.*)", DOCKERFILE, re.MULTILINE)


def is_in_context(path: str) -> bool:
    """Whether .dockerignore allows a file: the last pattern that matches it or its folder counts."""
    included = True
    parts = path.split("/")
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.lstrip("!").split("/")
        if line and not line.startswith("#") and all(map(fnmatchcase, parts, pattern)) and len(pattern) <= len(parts):
            included = line.startswith("!")
    return included


def build(sample: str, image: Path) -> None:
    """Copy the files that the Dockerfile copies into the image."""
    for copy in instructions("COPY"):
        *sources, target = copy.replace("${SAMPLE}", sample).split()
        assert target == "./"
        for source in sources:
            found = [ROOT / source] if not source.endswith("/") else sorted((ROOT / source).rglob("*"))
            for file in found:
                if file.is_file() and is_in_context(file.relative_to(ROOT).as_posix()):
                    place = image / (file.relative_to(ROOT / source) if source.endswith("/") else file.name)
                    place.parent.mkdir(exist_ok=True)
                    shutil.copy(file, place)
    assert (image / "requirements.txt").exists()
    assert (image / "constraints.txt").exists()


def command() -> list[str]:
    """The command of a container, with this Python."""
    python, *arguments = json.loads(instructions("CMD")[0])
    assert python == "python"
    return [sys.executable, *arguments]


@pytest.mark.parametrize("number", [name[:2] for name in SAMPLES])
def test_the_image_of_a_sample_has_what_its_worker_needs(
    sample: Callable[[str], Sample], number: str, tmp_path: Path, start: Start
) -> None:
    origin = sample(number)
    build(origin.folder.name, tmp_path)
    start(*command(), cwd=tmp_path, env=origin.environment()).wait_for("Worker ready")


def test_nothing_else_gets_into_an_image() -> None:
    for path in (".env", "README.md", "01_single_agent/.env", "06_multi_agent_orchestration_conditionals/outbox/1.eml"):
        assert not is_in_context(path)
    assert not is_in_context("01_single_agent/__pycache__/worker.cpython-312.pyc")
    assert not is_in_context("local_services/service.py")
    assert not is_in_context("runner/__main__.py")
    assert is_in_context("01_single_agent/worker.py")
    assert is_in_context("01_single_agent/hosting/program.py")
    assert not is_in_context("01_single_agent/hosting/__pycache__/program.cpython-312.pyc")


def test_the_image_does_not_run_as_root() -> None:
    (user,) = instructions("USER")
    assert int(user) > 0  # a number, so that Kubernetes can check that it is not root
    assert f"--uid {user} " in DOCKERFILE


@pytest.mark.long
def test_a_container_that_is_stopped_ends_in_time_and_another_finishes_its_work(
    sample: Callable[[str], Sample], model: ScriptedModel, tmp_path: Path, start: Start
) -> None:
    joker = sample("01")
    build(joker.folder.name, tmp_path)
    model.held = threading.Event()
    container = start(*command(), cwd=tmp_path, env=joker.environment())
    container.wait_for("Worker ready")
    client = joker.start_client("Tell me a joke about a cat.")
    eventually(lambda: model.requests, "an unfinished call")

    stopped_at = time.monotonic()
    container.signal(signal.SIGTERM)
    assert container.wait() == 0, container.errors
    assert time.monotonic() - stopped_at < grace_seconds()

    model.held.set()
    start(*command(), cwd=tmp_path, env=joker.environment())
    assert client.wait() == 0, client.errors
    assert "Joker: " in client.output


def grace_seconds() -> float:
    """The seconds that Compose waits between SIGTERM and SIGKILL."""
    return float(WORKER["stop_grace_period"].removesuffix("s"))


# Compose ---------------------------------------------------------------------------------------------------------


def test_without_a_profile_compose_runs_the_services_alone() -> None:
    services = COMPOSE["services"]
    assert {name for name, service in services.items() if "profiles" not in service} == {"scheduler", "redis"}
    assert WORKER["profiles"] == ["worker"]
    assert WORKER["deploy"]["replicas"] == 2
    assert set(WORKER["depends_on"]) == {"scheduler", "redis"}


def test_compose_and_dockerfile_agree_on_the_sample() -> None:
    (argument,) = instructions("ARG")
    name, default = argument.split("=")
    assert default in SAMPLES
    assert WORKER["build"] == {"context": ".", "args": {name: f"${{{name}:-{default}}}"}}


def test_compose_hands_every_setting_on_to_the_worker() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    known = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))
    in_the_image = dict(word.split("=") for word in instructions("ENV")[0].split())
    of_run_py = {"STATE_DIRECTORY"}
    assert set(WORKER["environment"]) == known - set(in_the_image) - of_run_py
    # Two workers share one folder: else a worker that takes over could not see what the other has sent.
    assert set(in_the_image.values()) == {volume.partition(":")[2] for volume in WORKER["volumes"]}


def test_compose_gives_the_addresses_that_its_services_have() -> None:
    assert WORKER["environment"]["ENDPOINT"] == "http://scheduler:8080"
    assert WORKER["environment"]["REDIS_CONNECTION_STRING"] == "redis://redis:6379"
    hubs = COMPOSE["services"]["scheduler"]["environment"]["DTS_TASK_HUB_NAMES"].split(",")
    assert WORKER["environment"]["TASKHUB"] == f"${{TASKHUB:-{hubs[0]}}}"
    assert len(hubs) > 1, "another than `default`, which will be refused"


def test_compose_gives_its_services_no_privileges() -> None:
    for service in COMPOSE["services"].values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["cap_drop"] == ["ALL"]


def test_images_have_exact_versions() -> None:
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service] + instructions("FROM")
    images.remove("mcr.microsoft.com/dts/dts-emulator:latest")  # which others there are is not documented
    assert len(images) == 2
    assert all(re.search(r":\d+\.\d+\.\d+-\w+$|@sha256:[0-9a-f]{64}$", image) for image in images)


def test_compose_publishes_ports_on_this_machine_only() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
