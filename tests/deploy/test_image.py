"""The image: what it installs is locked, and what it runs needs neither root nor a written disk.

No container engine is needed: `make check` lints the Containerfile, and the commands are run here
as processes.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, ROOT

CONTAINERFILE = (ROOT / "Containerfile").read_text()
BUILD, FINAL = CONTAINERFILE.split("\nFROM ", 2)[1:]


def versions(lock: Path) -> dict[str, str]:
    """Return the versions that a lock file pins, by name."""
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[.*?\])?==(\S+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", ["image.lock", "build.lock"])
def test_image_has_the_versions_that_were_tested(lock: str) -> None:
    """Where the tests' lock file pins a package, the image has the same version of it."""
    tested, found = versions(ROOT / "requirements.lock"), versions(DEPLOY / lock)
    assert found
    shared = tested.keys() & found.keys()
    assert {name: found[name] for name in shared} == {name: tested[name] for name in shared}


def test_image_has_all_that_the_package_and_its_extras_require() -> None:
    """Those of PostgreSQL, Delta Lake and Redis, which a deployment of several hosts needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["postgresql"], *extras["delta"], *extras["redis"]]
    names = {re.split(r"[\[<>=~! ;]", each)[0] for each in needed}
    assert names <= versions(DEPLOY / "image.lock").keys()


def test_each_install_checks_hashes_and_resolves_nothing() -> None:
    """The wheel of this package comes from the build itself."""
    installs = re.findall(r"pip install (.*?)(?: \\\n|$)", BUILD, re.MULTILINE)
    assert len(installs) == 3
    for each in installs:
        assert "--no-deps" in each
        assert "--require-hashes" in each or "--no-index dist/*.whl" in each


def test_image_runs_as_a_user_without_a_name_and_writes_one_folder() -> None:
    """Its number is that of the folder's owner, and of the Kubernetes manifests."""
    assert "USER 10001:10001" in FINAL
    assert "install --directory --owner=10001 --group=10001 /var/lib/ladon" in FINAL
    assert re.findall(r"^VOLUME (.*)", FINAL, re.MULTILINE) == ["/var/lib/ladon"]
    assert FINAL.index("USER 10001") < FINAL.index("ENTRYPOINT")


def test_image_has_a_bill_of_materials_a_health_check_and_labels() -> None:
    """Its operator can see what is in it."""
    assert "cyclonedx-py environment" in BUILD
    assert 'CMD ["ladon-storage", "health"]' in FINAL
    assert "org.opencontainers.image.licenses" in FINAL


def test_what_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    """The ignore file lets through what the Containerfile copies, and nothing else."""
    sent = {
        line[1:]
        for line in (ROOT / ".containerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.*)", CONTAINERFILE, re.MULTILINE)
        for name in [each for each in line.split() if not each.startswith("--")][:-1]
    }
    assert copied == sent
    assert all((ROOT / each).exists() for each in copied)


def entered(secrets: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command by the image's entry point."""
    environment = {"PATH": os.environ["PATH"], "LADON_SECRETS": str(secrets), **variables}
    return subprocess.run(
        [DEPLOY / "entrypoint", *command], env=environment, capture_output=True, text=True
    )


def test_secret_that_is_a_file_is_a_variable_of_its_name(tmp_path: Path) -> None:
    """Without its line break; a variable that is set, and a file of another kind of name, stay."""
    (tmp_path / "PGPASSWORD").write_text("p$w`d \"'\\ x\n")
    (tmp_path / "STORAGE_SERVICE_TOKEN").write_text("file")
    (tmp_path / "no-variable;id").write_text("x")
    (tmp_path / "..data").mkdir()
    done = entered(tmp_path, "env", STORAGE_SERVICE_TOKEN="set")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["PGPASSWORD"] == "p$w`d \"'\\ x"
    assert found["STORAGE_SERVICE_TOKEN"] == "set"
    assert set(found) <= {
        "PATH",
        "LADON_SECRETS",
        "PGPASSWORD",
        "STORAGE_SERVICE_TOKEN",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    }


def test_command_takes_the_place_of_the_entry_point(tmp_path: Path) -> None:
    """It gets the signals of the container, and its exit code is the container's."""
    done = entered(tmp_path / "absent", "sh", "-c", "echo $PPID; exit 7")
    assert (done.returncode, done.stdout) == (7, f"{os.getpid()}\n")


def test_secret_that_cannot_be_read_ends_the_container(tmp_path: Path) -> None:
    """It would otherwise run without, and fail elsewhere."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "cat").write_text("#!/bin/sh\nexit 1\n")  # as for a file of another user
    (programs / "cat").chmod(0o755)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "PGPASSWORD").write_text("x")
    done = entered(secrets, "env", PATH=f"{programs}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "PGPASSWORD cannot be read by user" in done.stderr
