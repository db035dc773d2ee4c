"""The files that are deployed, as the tests and the check by schemas read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
REQUIRED_BY_PREFECT = ("completions", "parallelism")
"""Fields that Prefect requires where Kubernetes has none of their names, and ignores them."""


def compose() -> dict[str, Any]:
    """Return the compose file, its extensions resolved and left out."""
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return {name: value for name, value in found.items() if not name.startswith("x-")}


def manifests() -> list[dict[str, Any]]:
    """Return the Kubernetes objects of the files that the kustomization lists."""
    names = kustomization()["resources"]
    return [each for name in names for each in yaml.safe_load_all((KUBERNETES / name).read_text())]


def kustomization() -> dict[str, Any]:
    """Return the kustomization."""
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    return found


def job_template() -> dict[str, Any]:
    """Return the template of the jobs, as the worker takes it."""
    found: dict[str, Any] = json.loads((KUBERNETES / "job-template.json").read_text())
    return found


def job() -> dict[str, Any]:
    """Return a job of the template, with the defaults of its variables."""
    template = job_template()
    values = {
        name: each.get("default") for name, each in template["variables"]["properties"].items()
    }
    values |= {"name": "kev", "labels": {"a": "b"}, "annotations": {}, "command": ["prefect"]}
    values["env"] = [{"name": name, "value": each} for name, each in values["env"].items()]
    found: dict[str, Any] = _filled(template["job_configuration"]["job_manifest"], values)
    pod = found["spec"]["template"]["spec"]
    for name in REQUIRED_BY_PREFECT:
        del pod[name]
    return found


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(each, values) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    if not isinstance(value, str) or "{{" not in value:
        return value
    whole = value.removeprefix("{{ ").removesuffix(" }}")
    if whole in values:
        return values[whole]
    for name, each in values.items():
        value = value.replace(f"{{{{ {name} }}}}", str(each))
    return value
