"""The compose file: hardened services in an order that works, over files that are there.

`make check` has it read by a strict reader of the compose specification. No container was started.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_settings_fields

from ladon_storage.collection.credentials import SECRET_FIELD, holds_secret
from ladon_storage.project.project import Project
from tests.deploy.files import DEPLOY, ROOT, compose

COMPOSE = compose()
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, each in SERVICES.items() if each["image"] == "ladon-storage"]


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_hardened(name: str) -> None:
    """It writes to volumes alone, has no capability, and gains none."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_image_of_others_has_a_version(name: str) -> None:
    """An image without one would be another one tomorrow."""
    image = SERVICES[name]["image"]
    assert name in OURS or re.fullmatch(r"docker\.io/[a-z/-]+:v?\d[\w.-]*", image)


@pytest.mark.parametrize("name", SERVICES)
def test_secret_is_a_file_and_stands_nowhere_else(name: str) -> None:
    """Neither in the environment nor in a command, which everyone on the host can read."""
    service = SERVICES[name]
    environment = service.get("environment", {})
    for variable, value in environment.items():
        assert not SECRET_FIELD.search(variable) or value.startswith("/run/secrets/"), variable
        assert not holds_secret(value)
    assert not any(holds_secret(each) for each in service.get("command", []))
    for secret in service.get("secrets", []):
        assert COMPOSE["secrets"][secret] == {"file": f"./secrets/{secret}"}
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", SERVICES)
def test_service_starts_after_what_it_needs(name: str) -> None:
    """It waits for a health check that the other one has, or for its end."""
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        check = SERVICES[other]["healthcheck"]
        if wait["condition"] == "service_healthy":
            assert check["test"][0] == "CMD"
        else:
            assert wait["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "on-failure"


@pytest.mark.parametrize("name", SERVICES)
def test_port_is_of_this_host_alone(name: str) -> None:
    """Prefect and the metrics have no sign-in."""
    assert all(each.startswith("127.0.0.1:") for each in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_volume_is_declared_or_a_file_that_is_there(name: str) -> None:
    """A file that is missing would become an empty folder."""
    for each in SERVICES[name].get("volumes", []):
        origin, target, *mode = each.split(":")
        if origin.startswith("."):
            assert (DEPLOY / origin).is_file()
            assert mode == ["ro"]
        else:
            assert origin in COMPOSE["volumes"]
        assert target.startswith("/")


@pytest.mark.parametrize("name", OURS)
def test_own_service_has_a_folder_that_it_may_write(name: str) -> None:
    """A volume of the image has its owner; a temporary file system is given to it."""
    service = SERVICES[name]
    volumes = [each.split(":")[1] for each in service.get("volumes", [])]
    given = [each.split(":")[0] for each in service["tmpfs"] if "uid=10001,gid=10001" in each]
    assert "/var/lib/ladon" in [*volumes, *given]
    assert "/tmp" in service["tmpfs"]


def test_database_of_prefect_is_in_postgresql() -> None:
    """Its SQLite would be locked; the role that the first start makes is the one that it uses."""
    prefect = SERVICES["prefect"]
    environment = prefect["environment"]
    name = environment["PREFECT_SERVER_DATABASE_NAME"]
    user = environment["PREFECT_SERVER_DATABASE_USER"]
    assert environment["PREFECT_SERVER_DATABASE_DRIVER"] == "postgresql+asyncpg"
    assert environment["PREFECT_SERVER_DATABASE_HOST"] in prefect["depends_on"]
    made = (DEPLOY / "databases.sql").read_text()
    assert f"CREATE DATABASE {name} OWNER {user};" in made
    [secret] = prefect["secrets"]
    assert f"`cat /run/secrets/{secret}`" in made
    assert secret in SERVICES["postgres"]["secrets"]
    assert (
        "./databases.sql:/docker-entrypoint-initdb.d/databases.sql:ro"
        in (SERVICES["postgres"]["volumes"])
    )
    assert set(environment) <= {each.upper() for each in _get_settings_fields(Settings)}


def test_database_and_services_have_no_way_out() -> None:
    """Only what is called from outside, or calls feeds, is in the other network."""
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    inside = {name for name, each in SERVICES.items() if each["networks"] == ["inside"]}
    assert {"postgres", "storage-1", "storage-2", "migrate"} <= inside
    for name, each in SERVICES.items():
        assert not each.get("ports") or "outside" in each["networks"], name


def test_file_of_the_worker_is_one_that_can_be_used() -> None:
    """Its storage is the balancer, and its secrets are those that the worker has."""
    project = Project.load(DEPLOY / "ladon.toml")
    assert project.storage.url == "http://balancer:8080"
    # A run has both from the variables of its worker.
    assert SERVICES["worker"]["environment"]["STORAGE_SERVICE_URL"] == project.storage.url
    assert project.storage.token == "STORAGE_SERVICE_TOKEN"
    assert project.storage.token in SERVICES["worker"]["secrets"]
    project.sink("records")
    project.source("kev")
    # What the deployments run by is read from the same file.
    assert SERVICES["deployments"]["volumes"][0] in SERVICES["worker"]["volumes"]
    kubernetes = tomllib.loads((DEPLOY / "kubernetes" / "ladon.toml").read_text())
    assert kubernetes["storage"]["token"] == project.storage.token


def test_dashboard_and_alerts_are_those_that_are_shipped() -> None:
    """Prometheus scrapes both services, and Grafana finds the dashboard where it is mounted."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    shipped = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    jobs = {each["job_name"]: each for each in prometheus["scrape_configs"]}
    assert jobs.keys() == {each["job_name"] for each in shipped["scrape_configs"]}
    assert jobs["ladon-storage"]["static_configs"] == [
        {"targets": ["storage-1:8080", "storage-2:8080"]}
    ]
    mounts = dict(each.split(":")[:2] for each in SERVICES["prometheus"]["volumes"])
    assert mounts["../monitoring/alerts.yml"] == "/etc/prometheus/alerts.yml"
    assert prometheus["rule_files"] == ["alerts.yml"]
    mounts = dict(each.split(":")[:2] for each in SERVICES["grafana"]["volumes"])
    [provider] = yaml.safe_load((DEPLOY / "grafana/dashboards.yaml").read_text())["providers"]
    dashboard = mounts["../monitoring/dashboard.json"]
    assert str(Path(dashboard).parent) == provider["options"]["path"]


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="there is no promtool; install it: apt-get install prometheus",
)
def test_configuration_of_prometheus_passes_its_own_check(tmp_path: Path) -> None:
    """As its container has it: with the alerts beside it, and the token in a file."""
    token = tmp_path / "token"
    token.write_text("x")
    text = (DEPLOY / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(
        text.replace("/run/secrets/STORAGE_SERVICE_TOKEN", str(token))
    )
    shutil.copy(ROOT / "monitoring" / "alerts.yml", tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
