"""The collection agrees with itself: shared files, requirements, imports, settings. Read, not run."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from collection import MARKDOWN, PUBLIC, SAMPLES, closure, requirements
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERY_SAMPLE = {"README.md", "client.py", "hosting", "requirements.txt", "sample.py", "worker.py"}
ORCHESTRATIONS = {"models.py", "orchestration.py"}  # in 04 to 07
MOST_LINES = {"worker.py": 60, "orchestration.py": 60, "client.py": 100}
MOST_LINES_OF_HOSTING = 100

by_sample = pytest.mark.parametrize("folder", SAMPLES, ids=lambda folder: folder.name[:2])


# Files -----------------------------------------------------------------------------------------------------------


@by_sample
def test_a_sample_has_the_files_that_every_sample_has(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names >= EVERY_SAMPLE
    assert (names >= ORCHESTRATIONS) if folder.name >= "04" else not names & {"orchestration.py"}


def hosting(folder: Path) -> dict[str, Path]:
    """The files of its plumbing, by their names without .py."""
    return {path.stem: path for path in sorted((folder / "hosting").glob("*.py"))}


@pytest.mark.parametrize(
    "name", sorted({name for folder in SAMPLES for name in hosting(folder)} | {"orchestration_double", "sample"})
)
def test_a_file_that_samples_share_is_the_same_in_each(name: str) -> None:
    place = f"{name}.py" if name in ("orchestration_double", "sample") else f"hosting/{name}.py"
    assert len({copy.read_bytes() for copy in ROOT.glob(f"[0-9][0-9]_*/{place}")}) == 1


@by_sample
def test_a_folder_carries_the_plumbing_that_it_imports_and_no_more(folder: Path) -> None:
    files = hosting(folder)
    needed, to_read = {"__init__"}, list(folder.glob("*.py"))
    while to_read:
        found = names_of_hosting(to_read.pop()) - needed
        assert found <= files.keys(), found - files.keys()
        needed |= found
        to_read += [files[name] for name in found]
    assert files.keys() == needed


def names_of_hosting(file: Path) -> set[str]:
    """The files of hosting that a file imports."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if node.level or str(node.module).partition(".")[0] == "hosting"]
    modules = [str(node.module).removeprefix("hosting").lstrip(".") for node in ours if node.module]
    packages = [alias.name for node in ours if node.module in (None, "hosting") for alias in node.names]
    return {name for name in (*modules, *packages) if name}


@by_sample
def test_files_are_short(folder: Path) -> None:
    most = {folder / name: lines for name, lines in MOST_LINES.items() if (folder / name).exists()}
    most |= dict.fromkeys(hosting(folder).values(), MOST_LINES_OF_HOSTING)
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in most}
    assert not {file.name: length for file, length in lengths.items() if length > most[file]}


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


@by_sample
def test_a_sample_imports_what_its_requirements_bring_and_nothing_else(folder: Path) -> None:
    """So it imports neither another sample nor a stand-in."""
    command = [sys.executable, "-m", "deptry", ".", "--config", ROOT / "pyproject.toml"]
    command += ["--requirements-files", "requirements.txt"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_what_stands_in_for_a_service_does_not_know_the_launcher() -> None:
    files = ROOT.glob("local_services/**/*.py")
    assert not [file for file in files if re.search(r"^\s*(from|import) runner\b", file.read_text(), re.MULTILINE)]


RUNTIME = "agent_framework_durabletask"


def inner_parts(file: Path) -> set[str]:
    """What a file imports from the agent runtime and is not public; also in a program or an example in its text."""
    text = file.read_text(encoding="utf-8")
    private = set(re.findall(rf"\b(?:from|import) ({RUNTIME}\.[\w.]+)", text))
    imported = re.findall(rf"\bfrom {RUNTIME} import (\([^)]*\)|[^\n#]*)", text)
    return private | {name for names in imported for name in re.findall(r"\w+", re.sub(r" as \w+", "", names))} - PUBLIC


def test_inner_parts_of_the_agent_runtime_are_used_in_one_file_of_a_folder() -> None:
    places = [*SAMPLES, *(ROOT / name for name in ("benchmarks", "local_services", "runner", "tests"))]
    files = [*MARKDOWN, *(file for place in places for file in place.rglob("*.py"))]
    using = {file for file in files if inner_parts(file)}
    assert using == {folder / "hosting" / "agent_runtime.py" for folder in SAMPLES}


# Settings --------------------------------------------------------------------------------------------------------


OF_RUN_PY: dict[str, str | None] = {"STATE_DIRECTORY": None}
NO_SETTINGS = {"RUN_AS", "USER", "USERNAME"}  # set by run.py for what it starts, and by the operating system


def read_settings() -> dict[str, str | None]:
    """The environment variables that the samples read, and the default of those that have one in the same place."""
    found: dict[str, str | None] = {}
    for file in ROOT.glob("[0-9][0-9]_*/**/*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):  # settings are read in one place, so that none is overlooked here
                assert node.attr not in ("environ", "getenv") or file.parent.name == "hosting", file
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            if ast.unparse(node.func) in ("setting", "os.environ.get"):
                arguments = [constants.get(ast.unparse(argument), argument) for argument in node.args]
                name, *default = map(ast.literal_eval, arguments)
                found[name] = default[0] if default else found.get(name)
    return {name: default for name, default in found.items() if name not in NO_SETTINGS}


def test_the_page_of_settings_lists_those_that_are_read() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    listed = {name: row[-1] for row in rows for name in re.findall(r"`([A-Z_]+)`", row[0])}
    read = read_settings() | OF_RUN_PY
    assert listed.keys() == read.keys()
    for name, default in listed.items():
        if default.startswith("`"):
            assert read[name] in (default.strip("`"), None), name


def test_the_example_of_an_env_file_has_the_same_settings() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE)) == (read_settings() | OF_RUN_PY).keys()
