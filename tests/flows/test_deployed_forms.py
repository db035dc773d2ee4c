"""The form of one deployment of a ``ladon.toml``: its own kind, sink and storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from ladon_storage.cli.deployments import deployments
from ladon_storage.cli.registering import changes
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows import collect, serve
from ladon_storage.flows.deployed import form_of, require_own_places
from ladon_storage.flows.serve import deployments as of_table
from ladon_storage.project.project import Project

_FILE = """
[storage]
url = "sqlite:///ladon.db"

[sinks.records]
url = "sqlite:///records.db"

[sources.kev]
kind = "kev"
schedule.interval = 3600

[sources.paged]
kind = "rest"
url = "https://api.example.org/items"
timestamps = ["at"]
paging = { kind = "link" }

[sources.own]
kind = "tests.own_classes:Tickets"
project = "P"
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a file with a shipped kind, a paging, and a class of one's own."""
    (tmp_path / "ladon.toml").write_text(_FILE)
    return Project.load(tmp_path / "ladon.toml")


def fields_of_source(form: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a form shows of a source."""
    source = form["properties"]["source"]
    shown: dict[str, Any] = form["definitions"][source["$ref"].rpartition("/")[2]]["properties"]
    return shown


async def validated(form: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return what Prefect's server says to a form when its button is pressed."""
    async with get_client() as client:
        answer = await client._client.post(
            "/ui/schemas/validate", json={"schema": form, "values": values}
        )
        said: dict[str, Any] = answer.raise_for_status().json()
        return said


async def test_form_without_the_sink_of_its_deployment_is_refused(project: Project) -> None:
    """The tab Block without a block would run with the deployment's own sink in silence."""
    deployment = deployments(project, ["kev"])[0]
    form = form_of(deployment)
    given: dict[str, Any] = {**(deployment.parameters or {}), "since": None, "limits": None}
    assert (await validated(form, given))["valid"]
    for name in ("sink", "storage"):
        left = {key: value for key, value in given.items() if key != name}
        said = await validated(form, left)
        assert not said["valid"]
        assert [each["property"] for each in said["errors"]] == [name]


async def test_deployment_without_a_storage_of_its_own_requires_the_choice(tmp_path: Path) -> None:
    """So that a run without it is none of its form, and the tab Default stays one of its values."""
    (tmp_path / "ladon.toml").write_text(_FILE.replace('[storage]\nurl = "sqlite:///ladon.db"', ""))
    for deployment in deployments(Project.load(tmp_path / "ladon.toml"), ["kev"]):
        given = deployment.parameters or {}
        assert given["storage"] is None
        assert (await validated(form_of(deployment), given))["valid"]
        said = await validated(form_of(deployment), {"source": given["source"], "sink": {}})
        assert "storage" in [each["property"] for each in said["errors"]]


@pytest.mark.usefixtures("nothing_deployed")
async def test_run_by_schedule_needs_no_sink_of_its_own(project: Project) -> None:
    """A run without parameters has those of its deployment."""
    deployment = deployments(project, ["kev"])[0]
    created = await deployment.aapply()
    async with get_client() as client:
        run = await client.create_flow_run_from_deployment(created)
        assert run.parameters["sink"] == (deployment.parameters or {})["sink"]
    assert [each.change for each in await changes([deployment])] == ["keep"]


@pytest.mark.usefixtures("nothing_deployed")
async def test_served_deployment_leaves_its_work_pool(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's workers would go on to run it; the next look at the file finds no change."""

    async def until_signalled(_: object) -> None: ...

    monkeypatch.setattr(serve, "_until_signalled", until_signalled)
    deployment = deployments(project, ["kev"])[0]
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="left", type="process"))
        await deployment.aapply(work_pool_name="left")
        before = await client.read_deployment_by_name(deployment.full_name)
        assert before.work_pool_name == "left"
        await serve.serve_deployments([deployment])
        after = await client.read_deployment_by_name(deployment.full_name)
    assert (after.id, after.work_pool_name, after.work_queue_name) == (before.id, None, None)
    assert [each.change for each in await changes([deployment])] == ["keep"]


def test_deployment_shows_the_fields_of_its_kind_alone(project: Project) -> None:
    """A reconciliation and a class of one's own need no choice of kinds and no JSON."""
    found = {each.full_name: form_of(each) for each in deployments(project, ["kev", "own"])}
    again = fields_of_source(found["reconcile/kev"])
    assert (again["kind"]["const"], "overlap" in again) == ("kev", False)
    own = fields_of_source(found["collect/own"])
    assert own["kind"]["const"] == "tests.own_classes:Tickets"
    assert "project" in own


def test_deployed_choice_has_all_fields_of_its_kind(project: Project) -> None:
    """Both UIs find its tab by them."""
    deployment = deployments(project, ["paged"])[0]
    paging = (deployment.parameters or {})["source"]["paging"]
    assert paging["kind"] == "link"
    assert {"stable", "keep_host"} <= paging.keys()


@pytest.mark.usefixtures("nothing_deployed")
async def test_changed_form_updates_a_deployment(project: Project) -> None:
    """A newer package with other fields is seen."""
    deployment = deployments(project, ["kev"])[0]
    await deployment.aapply()
    deployment._parameter_openapi_schema.properties["since"]["title"] = "From"
    found = await changes([deployment])
    assert [(each.change, each.because) for each in found] == [("update", "form")]


def test_table_of_deployments_requires_a_sink_that_it_names(tmp_path: Path) -> None:
    """A prefect.yaml that is served here has such forms too."""
    table = tmp_path / "prefect.yaml"
    table.write_text(
        """
deployments:
  - name: kev
    entrypoint: ladon_storage.flows.collect.collect_kev
    description: KEV
    tags: []
    parameters: { sink: { url: "sqlite:///records.db" } }
    concurrency_limit: { limit: 1 }
"""
    )
    deployment = of_table(table)[0]
    assert "sink" in form_of(deployment)["required"]
    require_own_places(deployment)
    assert form_of(deployment)["required"].count("sink") == 1


async def test_table_of_deployments_collects_a_class_of_ones_own(tmp_path: Path) -> None:
    """A prefect.yaml names it by module and class, as the file does."""
    table = tmp_path / "prefect.yaml"
    table.write_text(
        f"""
deployments:
  - name: own
    entrypoint: ladon_storage.flows.collect.collect
    parameters:
      source: {{ kind: "tests.own_classes:Tickets", source_id: own, project: P }}
      sink: {{ url: "sqlite:///{tmp_path}/records.db" }}
      storage: {{ url: "sqlite:///{tmp_path}/ladon.db" }}
"""
    )
    [deployment] = of_table(table)
    report = await collect(**deployment.parameters)
    assert (report.source_id, report.records_written) == ("own", 2)


KEV = "ladon_storage.flows.collect.collect_kev"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("deployments: nothing", "has no list of deployments. Give each a name"),
        ("x: 1", "has no list of deployments"),
        ("deployments: [1]", "has no list of deployments"),
        ("{", "is not YAML at line"),
        ("deployments: [{name: x}]", "'x' of .* needs a name and an entrypoint"),
        ("deployments: [{name: x, entrypoint: nosuch.py:f}]", "No module named 'nosuch'"),
        (
            "deployments: [{name: x, entrypoint: ladon_storage.flows.collect.collect_kve}]",
            "is no flow; did you mean 'collect_kev'",
        ),
        (
            f"deployments: [{{name: x, entrypoint: {KEV}, schedules: [{{cron: bad}}]}}]",
            "cannot be made: cron: Invalid cron string",
        ),
        (f"deployments: [{{name: x, entrypoint: {KEV}, schedules: 3}}]", "of another form"),
        (
            f"deployments: [{{name: x, entrypoint: {KEV}, parameters: {{sorce: {{}}}}}}]",
            "no parameter 'sorce'; did you mean 'source'",
        ),
    ],
)
def test_wrong_table_of_deployments_is_one_sentence(
    tmp_path: Path, content: str, said: str
) -> None:
    """The file, the deployment and what is wrong with it are named before anything is served."""
    table = tmp_path / "prefect.yaml"
    table.write_text(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        of_table(table)
    assert str(table) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_of_deployments_says_whether_a_schedule_is_active(tmp_path: Path) -> None:
    """A schedule has Prefect's key for that; without it, it is active and the UI's to switch."""
    table = tmp_path / "prefect.yaml"
    table.write_text(
        "deployments:\n- name: kev\n  entrypoint: ladon_storage.flows.collect.collect_kev\n"
        "  schedules:\n  - {cron: 0 6 * * *, active: false}\n  - {cron: 0 7 * * *}\n"
    )
    [made] = of_table(table)
    assert [(each.active, "active" in each.model_fields_set) for each in made.schedules or []] == [
        (False, True),
        (True, False),
    ]


def test_table_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    """A folder, and a file that is no UTF-8."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        of_table(tmp_path)
    (tmp_path / "prefect.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8"):
        of_table(tmp_path / "prefect.yaml")


def test_deployment_of_a_table_needs_a_name_and_an_entrypoint_alone(tmp_path: Path) -> None:
    """The rest of Prefect's keys have defaults, as for Prefect."""
    table = tmp_path / "prefect.yaml"
    table.write_text(f"deployments: [{{name: x, entrypoint: {KEV}}}]")
    assert [each.full_name for each in of_table(table)] == ["collect-kev/x"]
