"""Which services a sample needs, and where each one is: at the address in the environment, or started here."""

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
CONNECT_SECONDS = 3.0
DEFAULT_PORTS = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379}


class CannotRun(Exception):
    """Something is set wrong, missing or in the way; the message says what, and how to fix it."""


@dataclass(frozen=True)
class Service:
    """A local service, and the variable by which a sample finds it."""

    name: str  # as in its ready line
    module: str  # in local_services
    port: int  # that of the real service
    variable: str  # holds its address, for the samples


SCHEDULER = Service("scheduler", "scheduler", 8080, "ENDPOINT")
MODEL = Service("model", "offline_model", 8081, "AZURE_OPENAI_ENDPOINT")
REDIS = Service("redis", "redis_server", 6379, "REDIS_CONNECTION_STRING")
SERVICES = (SCHEDULER, MODEL, REDIS)
DASHBOARD = Service("dashboard", "dashboard", 8082, "")  # no sample needs it

MODELS = {  # the setting that selects a kind of model -> the other settings of that kind
    "AZURE_OPENAI_ENDPOINT": ("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME", "AZURE_OPENAI_API_KEY"),
    "OPENAI_API_KEY": ("OPENAI_MODEL", "OPENAI_BASE_URL"),
}
OFFLINE_MODEL = {"AZURE_OPENAI_CHAT_DEPLOYMENT_NAME": "offline-model", "AZURE_OPENAI_API_KEY": "local"}


def environment(folder: Path) -> dict[str, str]:
    """A program's environment: this process's, which has priority, and `.env` in its folder or above it.

    As in the samples, a model that this process's environment selects has priority as a whole.
    """
    from dotenv import dotenv_values

    files = {**dotenv_values(ROOT / ".env"), **dotenv_values(folder / ".env")}
    selected = [kind for kind in MODELS if os.environ.get(kind)]
    hidden = {name for kind, others in MODELS.items() if kind not in selected for name in (kind, *others)}
    return {name: value or "" for name, value in files.items() if not (selected and name in hidden)} | os.environ


class Address:
    """The address that a variable of the environment holds. Raises CannotRun if it is none."""

    def __init__(self, variable: str, url: str) -> None:
        try:
            parts = urlsplit(url)
            self.host = parts.hostname or ""
            self.port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
            self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        except (ValueError, KeyError):
            self.host = ""
        if not self.host:
            raise CannotRun(f"{variable} is not an address such as http://localhost:8080.")
        self.variable = variable
        self.is_local = self.host in ("localhost", "::1", socket.gethostname().lower()) or self.host.startswith("127.")

    def __str__(self) -> str:
        """The address without user and password."""
        return self._shown

    def answers(self) -> bool:
        """Whether a program listens there."""
        if self._shown.startswith("https:") and (os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")):
            return True  # only the proxy knows
        try:
            socket.create_connection((self.host, self.port), timeout=CONNECT_SECONDS).close()
        except (OSError, UnicodeError):
            return False
        return True


def named(service: Service, env: dict[str, str]) -> Address | None:
    """The service's address if the environment has one; the model may also be OpenAI's or a compatible one."""
    if url := env.get(service.variable):
        return Address(service.variable, url)
    if service is MODEL and env.get("OPENAI_API_KEY"):
        return Address("OPENAI_BASE_URL", env.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")
    return None


def ports_to_start(sample: Path, env: dict[str, str]) -> tuple[dict[Service, int], dict[Service, Address]]:
    """The services to start for a sample, each with its port (0: any free one); and those that run already.

    Raises CannotRun if the environment names an address on another machine, and nothing answers there.
    """
    needs_redis = re.search(r"^redis\b", (sample / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    ports: dict[Service, int] = {}
    found: dict[Service, Address] = {}
    for service in SERVICES if needs_redis else SERVICES[:2]:
        address = named(service, env)
        if address and address.answers():
            found[service] = address
        elif address and not address.is_local:
            raise CannotRun(
                f"{address.variable} names {address}, and nothing answers there. "
                f"Correct it, or unset it: then a local {service.name} is started."
            )
        else:
            ports[service] = address.port if address else 0
    return ports, found


def settings(sample: Path, env: dict[str, str], started: dict[Service, str]) -> dict[str, str]:
    """The environment for the sample's worker and client, with the addresses of the services started here."""
    model = named(MODEL, env)
    changed = {service.variable: address for service, address in started.items()}
    if model is None:
        changed |= OFFLINE_MODEL
    elif model.variable != MODEL.variable:
        changed.pop(MODEL.variable, None)  # if it was started, then at OPENAI_BASE_URL
    elif model.is_local:
        changed |= {name: value for name, value in OFFLINE_MODEL.items() if not env.get(name)}
    if SCHEDULER in started and env.get("TASKHUB") in (None, "", "default"):
        changed["TASKHUB"] = sample.name  # one per sample, so that no sample sees another's work
    return env | changed
