"""What the tools find: lint, types, formats."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


def assert_clean(*command: str) -> None:
    """The tool finds nothing to complain about."""
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing() -> None:
    assert_clean("ruff", "check")


def test_the_code_is_formatted() -> None:
    assert_clean("ruff", "format", "--check")


@pytest.mark.long
def test_pyright_finds_nothing() -> None:
    assert_clean("pyright")


@pytest.mark.parametrize(
    ("schema", "file"),
    [("vendor.compose-spec", "docker-compose.yml"), ("vendor.github-workflows", ".github/workflows/ci.yml")],
)
def test_a_file_keeps_to_its_schema(schema: str, file: str) -> None:
    assert_clean("check_jsonschema", "--builtin-schema", schema, file)


def test_actions_have_the_commit_of_a_release() -> None:
    """A tag could be moved to other code."""
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for action in re.findall(r"\buses: (.*)", file.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
