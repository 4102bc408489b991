"""azure/: what azd, the parameters and the Bicep files say of each other, of the Dockerfile and of the settings.

Nothing is deployed here, and the Bicep compiler is in no package index that CI reaches.
"""

import json
import re
from typing import Any

import yaml
from collection import SAMPLES
from conftest import ROOT

AZURE = ROOT / "azure"
AZD: dict[str, Any] = yaml.safe_load((AZURE / "azure.yaml").read_text(encoding="utf-8"))
PARAMETERS: dict[str, Any] = json.loads((AZURE / "main.parameters.json").read_text(encoding="utf-8"))["parameters"]
MAIN, RESOURCES = ((AZURE / file).read_text(encoding="utf-8") for file in ("main.bicep", "resources.bicep"))
((NAME, SERVICE),) = AZD["services"].items()
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def parameters(bicep: str) -> dict[str, bool]:
    """The parameters of a Bicep file, and whether each has a default."""
    return {name: bool(rest) for name, rest in re.findall(r"^param (\w+) \w+(.*)$", bicep, re.MULTILINE)}


def outputs(bicep: str) -> dict[str, str]:
    """The outputs of a Bicep file, and their expressions."""
    return dict(re.findall(r"^output (\w+) string = (.+)$", bicep, re.MULTILINE))


def environment() -> set[str]:
    """The names of the variables that the worker receives."""
    return set(re.findall(r"\{ name: '([A-Z_]+)', (?:value|secretRef): ", RESOURCES))


def test_azd_builds_the_dockerfile_of_the_repository() -> None:
    project = (AZURE / SERVICE["project"]).resolve()
    assert project / SERVICE["docker"]["context"] == ROOT
    dockerfile = (project / SERVICE["docker"]["path"]).read_text(encoding="utf-8")
    for argument in SERVICE["docker"]["buildArgs"]:
        ((name, default),) = re.findall(r"^(\w+)=\$\{\1=(\w+)\}$", argument)
        assert f"ARG {name}={default}" in dockerfile
        assert ROOT / default in SAMPLES
        assert PARAMETERS["sample"]["value"] == argument.partition("=")[2]


def test_azd_finds_the_templates_and_the_worker() -> None:
    assert (AZURE / AZD["infra"]["path"] / f"{AZD['infra']['module']}.bicep").is_file()
    assert f"'azd-service-name': '{NAME}'" in RESOURCES
    assert PARAMETERS["image"]["value"] == f"${{SERVICE_{NAME.upper()}_IMAGE_NAME}}"
    assert "AZURE_CONTAINER_REGISTRY_ENDPOINT" in outputs(MAIN)


def test_each_parameter_is_declared_and_given() -> None:
    assert set(PARAMETERS) == set(parameters(MAIN))
    passed = re.findall(r"^    (\w+): \w+$", MAIN.partition("params: {")[2], re.MULTILINE)
    assert set(passed) == {name for name, has_default in parameters(RESOURCES).items() if not has_default}
    assert set(re.findall(r"resources\.outputs\.(\w+)", MAIN)) == set(outputs(RESOURCES))


def test_worker_and_client_receive_settings_that_exist() -> None:
    settings = {name for name in outputs(MAIN) if f"`{name}`" in SETTINGS}
    assert settings == {"ENDPOINT", "TASKHUB", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_CHAT_DEPLOYMENT_NAME"}
    assert environment() == settings | {"REDIS_CONNECTION_STRING", "AZURE_CLIENT_ID"}


def test_there_are_no_secrets_in_parameters_and_outputs_and_no_way_in() -> None:
    assert not [name for name in parameters(MAIN + RESOURCES) if re.search("key|secret|password", name, re.IGNORECASE)]
    assert not [text for text in outputs(MAIN + RESOURCES).values() if re.search("key|secret", text, re.IGNORECASE)]
    assert "disableLocalAuth: true" in RESOURCES
    assert "adminUserEnabled: false" in RESOURCES
    assert not re.search(r"^\s*ingress:", RESOURCES, re.MULTILINE)


def test_a_task_hub_has_a_name_that_azure_accepts() -> None:
    assert "name: replace(sample, '_', '-')" in RESOURCES
    assert all(re.fullmatch("[a-zA-Z0-9-]{3,64}", folder.name.replace("_", "-")) for folder in SAMPLES)
