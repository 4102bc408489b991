"""What holds for the whole collection: lint, types, formats, and the files that are meant to be the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SAMPLES = sorted(path for path in ROOT.glob("[0-9][0-9]_*") if path.is_dir())


def assert_clean(*command: str) -> None:
    """The tool finds nothing to complain about."""
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing() -> None:
    assert_clean("ruff", "check")


def test_the_code_is_formatted() -> None:
    assert_clean("ruff", "format", "--check")


def test_pyright_finds_nothing() -> None:
    assert_clean("pyright")


@pytest.mark.parametrize(
    ("schema", "file"),
    [("vendor.compose-spec", "docker-compose.yml"), ("vendor.github-workflows", ".github/workflows/ci.yml")],
)
def test_a_file_keeps_to_its_schema(schema: str, file: str) -> None:
    assert_clean("check_jsonschema", "--builtin-schema", schema, file)


@pytest.mark.parametrize("name", ["support.py", "steps.py"])
def test_shared_files_are_the_same_in_every_sample(name: str) -> None:
    copies = [folder / name for folder in SAMPLES if (folder / name).exists()]
    expected = SAMPLES if name == "support.py" else SAMPLES[3:]
    assert [copy.parent for copy in copies] == expected
    assert len({copy.read_bytes() for copy in copies}) == 1


@pytest.mark.parametrize("folder", SAMPLES, ids=lambda folder: folder.name[:2])
def test_a_sample_has_the_files_that_every_sample_has(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "client.py", "requirements.txt", "sample.py", "support.py", "worker.py"} <= names
