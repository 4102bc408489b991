"""What the tests of the whole collection share: its samples, and the distributions that a requirements.txt brings."""

from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SAMPLES = sorted(path for path in ROOT.glob("[0-9][0-9]_*") if path.is_dir())
# What the agent runtime's own documentation and samples use.
PUBLIC = {
    "AgentCallbackContext",
    "AgentResponseCallbackProtocol",
    "AgentSessionId",
    "DurableAIAgent",
    "DurableAIAgentClient",
    "DurableAIAgentOrchestrationContext",
    "DurableAIAgentWorker",
    "DurableAgentSession",
}
MARKDOWN = sorted(path for pattern in ("*.md", "docs/*.md", "*/README.md") for path in ROOT.glob(pattern))


def requirements(folder: Path) -> list[Requirement]:
    """What the folder's requirements.txt asks for."""
    return [Requirement(line) for line in (folder / "requirements.txt").read_text().splitlines()]


def closure(wanted: Iterable[Requirement]) -> dict[str, Distribution]:
    """What an installation of these brings here, by name: they, what they require, and so on."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    to_do = [(requirement, "") for requirement in wanted]
    while to_do:
        requirement, extra = to_do.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.setdefault(name, distribution(requirement.name))
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                to_do += [(Requirement(line), extra) for line in found[name].requires or ()]
    return found
