"""The check of what is deployed by schemas and a linter that others keep; `make check` runs it.

The tests know what these do not: that the files fit together, and that the commands in them run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy.files import ROOT, compose, job, manifests

KUBERNETES_VERSIONS = ("1.32", "1.37")
"""The oldest and the newest version whose schemas the manifests have to fit."""


def problems() -> Iterator[str]:
    """Yield what is wrong, in a line for each."""
    linter = Path(sysconfig.get_path("scripts"), "hadolint")
    done = subprocess.run([linter, ROOT / "Containerfile"], capture_output=True, text=True)
    yield from (done.stdout + done.stderr).splitlines()
    try:
        _check_compose(compose())
    except ValueError as error:
        yield f"deploy/compose.yaml: {error}"
    for each in (*manifests(), job()):
        for version in KUBERNETES_VERSIONS:
            yield from _wrong_in(each, version)


def _check_compose(found: dict[str, Any]) -> None:
    from compose_spec import PyCompose

    read = PyCompose.from_json(json.dumps(found))
    read.validate()
    read.to_spec()


def _wrong_in(found: dict[str, Any], version: str) -> Iterator[str]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = f"{found['kind']} {found['metadata'].get('name', 'of the job template')}"
        yield f"{where}, Kubernetes {version}: {'.'.join(map(str, error.path))} {error.message}"


if __name__ == "__main__":
    found = list(problems())
    sys.stderr.writelines(f"{each}\n" for each in found)
    sys.exit(bool(found))
