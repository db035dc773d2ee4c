"""The Kubernetes manifests: replicas that replace each other without a refused write.

`make check` compares them with the schemas of Kubernetes. No cluster was asked.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from ladon_storage.project.project import Project
from tests.deploy.files import KUBERNETES, job, job_template, kustomization, manifests

BY_KIND = {(each["kind"], each["metadata"]["name"]): each for each in manifests()}
STORAGE = BY_KIND["Deployment", "storage"]["spec"]
WORKER = BY_KIND["Deployment", "prefect-worker"]["spec"]
JOB = job()["spec"]
PODS = {"storage": STORAGE["template"]["spec"], "worker": WORKER["template"]["spec"]} | {
    "job": JOB["template"]["spec"]
}


@pytest.mark.parametrize("name", PODS)
def test_pod_is_hardened(name: str) -> None:
    """Neither root nor a written root file system, nor a capability, nor another's token."""
    pod = PODS[name]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert name == "worker" or pod["automountServiceAccountToken"] is False
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {"/tmp", "/var/lib/ladon"} <= mounts.keys()
    assert set(mounts.values()) == volumes.keys()
    assert container["resources"]["limits"]["memory"]


def test_update_ends_no_replica_before_its_successor_answers() -> None:
    """And an ended one answers until no node sends it requests, and then ends those in flight."""
    assert STORAGE["replicas"] == 3
    assert STORAGE["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    pod = PODS["storage"]
    [container] = pod["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = container["readinessProbe"]
    assert pause >= probe["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] >= pause + 30
    budget = BY_KIND["PodDisruptionBudget", "storage"]["spec"]
    assert budget["minAvailable"] == STORAGE["replicas"] - 1


def test_database_that_is_away_restarts_no_replica() -> None:
    """A replica is not ready then; a probe for its life asks what needs no database."""
    [container] = PODS["storage"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"
    for probe in ("livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"]["path"] == "/openapi.json"


def test_what_selects_the_replicas_selects_them() -> None:
    """The service, the budget, the network policy and the spread are about the same pods."""
    labels = STORAGE["template"]["metadata"]["labels"]
    assert BY_KIND["Service", "storage"]["spec"]["selector"] == labels
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = BY_KIND[kind, "storage"]["spec"]
        assert spec.get("selector", spec.get("podSelector")) == {"matchLabels": labels}
    [spread] = PODS["storage"]["topologySpreadConstraints"]
    assert spread["labelSelector"] == STORAGE["selector"] == {"matchLabels": labels}


def test_secret_stands_in_no_manifest() -> None:
    """All of them come from one secret, which is not among the files."""
    assert not [kind for kind, _ in BY_KIND if kind == "Secret"]
    for name in ("storage", "job"):
        [container] = PODS[name]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "ladon-storage"}}]
    [worker] = PODS["worker"]["containers"]
    assert "envFrom" not in worker  # it starts runs, and does not collect


def test_worker_may_make_jobs_in_its_own_namespace_alone() -> None:
    """It has a role and no cluster role, and watches one namespace."""
    assert not [kind for kind, _ in BY_KIND if kind.startswith("Cluster")]
    binding = BY_KIND["RoleBinding", "prefect-worker"]
    assert binding["roleRef"]["name"] == "prefect-worker"
    assert PODS["worker"]["serviceAccountName"] == binding["subjects"][0]["name"]
    [container] = PODS["worker"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    watched = variables["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"]
    assert watched == kustomization()["namespace"]


def test_each_variable_of_the_job_template_is_used_and_declared() -> None:
    """A name that is only on one side would be sent to Kubernetes as it stands."""
    text = yaml.safe_dump(job_template()["job_configuration"], width=10_000)
    variables = job_template()["variables"]["properties"]
    assert {each.split(" }}")[0] for each in text.split("{{ ")[1:]} == set(variables)
    assert all(each["title"] and each["description"] for each in variables.values())
    assert "{{" not in yaml.safe_dump(job())


def test_worker_and_runs_find_what_they_name() -> None:
    """The worker has the template of the runs' jobs by the name that is generated."""
    generated = {each["name"]: each for each in kustomization()["configMapGenerator"]}
    for name in generated["ladon-files"]["files"]:
        assert (KUBERNETES / name).is_file()
    assert {"name": "ladon-files"} in [each.get("configMap") for each in PODS["worker"]["volumes"]]
    [container] = PODS["worker"]["containers"]
    assert "--base-job-template=/etc/prefect/job-template.json" in container["args"]
    assert mounted("worker", "ladon-files") == ("/etc/prefect", True)
    [container] = PODS["job"]["containers"]
    project = Project.load(KUBERNETES / "ladon.toml")
    assert {"name": "STORAGE_SERVICE_URL", "value": project.storage.url} in container["env"]
    service = BY_KIND["Service", "storage"]
    port = service["spec"]["ports"][0]["port"]
    assert project.storage.url == f"http://{service['metadata']['name']}:{port}"
    project.sink("records")
    [image] = kustomization()["images"]
    assert container["image"] == f"{image['newName']}:{image['newTag']}"


def mounted(pod: str, config_map: str) -> tuple[str, bool]:
    """Return where a pod has the files of a ConfigMap, and whether it cannot write there."""
    [volume] = [
        each["name"]
        for each in PODS[pod]["volumes"]
        if each.get("configMap", {}).get("name") == config_map
    ]
    [container] = PODS[pod]["containers"]
    [mount] = [each for each in container["volumeMounts"] if each["name"] == volume]
    assert "subPath" not in mount  # such a file would keep its first content
    return mount["mountPath"], mount.get("readOnly", False)


def test_runs_of_collect_many_find_the_file_that_was_deployed() -> None:
    """A run reads the file by the path that its deployment was made with, in the worker's pod."""
    [generated] = [
        each for each in kustomization()["configMapGenerator"] if each["name"] == "ladon-toml"
    ]
    assert generated["files"] == ["ladon.toml"]
    assert generated["options"] == {"disableNameSuffixHash": True}  # the template has the name
    assert mounted("worker", "ladon-toml") == mounted("job", "ladon-toml") == ("/etc/ladon", True)
    [container] = PODS["worker"]["containers"]
    assert {"name": "LADON_FILE", "value": "/etc/ladon/ladon.toml"} in container["env"]


@pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="there is no kubectl; install Kubernetes' own"
)
def test_kustomization_builds() -> None:
    """With the same objects, in its namespace, and the image that it names."""
    done = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True, check=True
    )
    built: list[dict[str, Any]] = list(yaml.safe_load_all(done.stdout))
    kinds = {(each["kind"], each["metadata"]["name"]) for each in built}
    generated = {name for kind, name in kinds if kind == "ConfigMap"}
    # Their names change with their content, so a change replaces the pods.
    generated.remove("ladon-toml")
    assert {each.rpartition("-")[0] for each in generated} == {"ladon-files", "ladon-settings"}
    assert {each for each in kinds if each[0] != "ConfigMap"} == BY_KIND.keys()
    assert {each["metadata"]["namespace"] for each in built} == {"ladon"}
    assert "image: ladon-storage" not in done.stdout
