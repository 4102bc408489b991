"""The collection agrees with itself: shared files, requirements, imports, settings. Read, not run."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from collection import SAMPLES, closure, requirements
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERY_SAMPLE = {"README.md", "client.py", "requirements.txt", "sample.py", "support.py", "worker.py"}
ORCHESTRATIONS = {"models.py", "orchestration.py", "steps.py"}  # in 04 to 07
# `agent_framework.openai` belongs to the core, and leads to what this distribution has.
DOORS = {"agent-framework-openai": "agent_framework/openai/__init__.py"}

by_sample = pytest.mark.parametrize("folder", SAMPLES, ids=lambda folder: folder.name[:2])


# Files -----------------------------------------------------------------------------------------------------------


@by_sample
def test_a_sample_has_the_files_that_every_sample_has(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names >= EVERY_SAMPLE
    assert (names >= ORCHESTRATIONS) if folder.name >= "04" else not names & {"orchestration.py", "steps.py"}


@pytest.mark.parametrize("name", ["support.py", "steps.py"])
def test_shared_files_are_the_same_in_every_sample(name: str) -> None:
    assert len({copy.read_bytes() for copy in ROOT.glob(f"[0-9][0-9]_*/{name}")}) == 1


# Requirements ----------------------------------------------------------------------------------------------------

OF_SAMPLES = [requirement for folder in SAMPLES for requirement in requirements(folder)]


def groups() -> list[Requirement]:
    """The requirements in the groups of pyproject.toml; `test` includes the others."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return [Requirement(entry) for entries in tables.values() for entry in entries if isinstance(entry, str)]


def pins() -> dict[str, list[Requirement]]:
    """What constraints.txt says, by name: more than one version where the Pythons differ."""
    found = defaultdict(list)
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            found[canonicalize_name(Requirement(line).name)].append(Requirement(line))
    return found


def test_a_requirement_reads_the_same_in_every_sample() -> None:
    assert len({str(requirement) for requirement in OF_SAMPLES}) == len({one.name for one in OF_SAMPLES})


@by_sample
def test_a_sample_asks_for_compatible_releases(folder: Path) -> None:
    for requirement in requirements(folder):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({"=="}, {">=", "<"}), requirement


def test_whatever_is_asked_for_is_pinned() -> None:
    pinned = pins()
    for requirement in [*groups(), *OF_SAMPLES]:
        versions = pinned[canonicalize_name(requirement.name)]
        assert versions, f"constraints.txt lacks {requirement}"
        for pin in versions:
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert requirement.specifier.contains(specifier.version, prereleases=True), f"{requirement}, but {pin}"


def test_what_these_tests_run_with_is_what_is_pinned() -> None:
    pinned = pins()
    for name, installed in closure([*groups(), *OF_SAMPLES]).items():
        (pin,) = [pin for pin in pinned[name] if not pin.marker or pin.marker.evaluate()]
        assert pin.specifier.contains(installed.version, prereleases=True), f"{installed.version} is installed, {pin}"


# Imports ---------------------------------------------------------------------------------------------------------


def imported(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """What the folder's files import from elsewhere, and the files that this may be, the likeliest first."""
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: {ast.unparse(node)}"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                parts = name.split(".")
                if parts[0] not in sys.stdlib_module_names and not (folder / f"{parts[0]}.py").exists():
                    paths = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]
                    yield name, [path + ending for path in paths for ending in ("/__init__.py", ".py")]


@by_sample
def test_a_sample_imports_what_its_requirements_bring_and_they_bring_what_it_imports(folder: Path) -> None:
    wanted = requirements(folder)
    brought = {str(file): name for name, one in closure(wanted).items() for file in one.files or ()}
    used = set()
    for name, files in imported(folder):
        file = next((file for file in files if file in brought), None)
        assert file, f"{name} is neither in this folder nor in what its requirements.txt brings"
        used |= {brought[file], file}
    for requirement in wanted:
        assert {requirement.name, DOORS.get(requirement.name)} & used, f"nothing imports {requirement.name}"


# Settings --------------------------------------------------------------------------------------------------------


OF_RUN_PY: dict[str, str | None] = {"STATE_DIRECTORY": None}


def read_settings() -> dict[str, str | None]:
    """The environment variables that the samples read, and the default of those that have one in the same place."""
    found: dict[str, str | None] = {}
    for file in ROOT.glob("[0-9][0-9]_*/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):  # settings are read in one place, so that none is overlooked here
                assert node.attr not in ("environ", "getenv") or file.name == "support.py", file
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "setting":
                name, *default = map(ast.literal_eval, node.args)
                found[name] = default[0] if default else found.get(name)
    return found


def test_the_readme_lists_the_settings_that_are_read() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Settings\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    listed = {name: row[-1] for row in rows for name in re.findall(r"`([A-Z_]+)`", row[0])}
    read = read_settings() | OF_RUN_PY
    assert listed.keys() == read.keys()
    for name, default in listed.items():
        if default.startswith("`"):
            assert read[name] in (default.strip("`"), None), name


def test_the_example_of_an_env_file_has_the_same_settings() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE)) == (read_settings() | OF_RUN_PY).keys()
