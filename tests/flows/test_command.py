"""The command where Prefect runs its verbs: the flows, and the deployments of the file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, Settings, temporary_settings
from prefect.settings.legacy import _get_settings_fields

from ladon_storage import flows
from ladon_storage.cli.deployments import collect_many as made_of_many
from ladon_storage.cli.deployments import deployments as made_of
from ladon_storage.cli.deployments import read_again, storage_variables
from ladon_storage.cli.up import RUNS, SERVER
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.serve import DEPLOYMENTS_FILE
from ladon_storage.project import Project
from ladon_storage.settings import StorageSettings
from ladon_storage.testing.feed_server import FeedServer
from tests.cli.called import Command, called_in
from tests.cli.feeds import OWN, catalogue, project

SCHEDULE = 'schedule.cron = "0 6 * * *"\n'


async def runs(client: PrefectClient) -> int:
    """Return how many flow runs Prefect knows."""
    answer = await client.request("POST", "/flow_runs/count", json={})
    return int(answer.json())


@pytest.fixture
def ladon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Give the command in an empty folder, with this Prefect configured."""
    with called_in(tmp_path, monkeypatch, capsys) as command:
        monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        yield command


async def test_collect_runs_the_flow_where_prefect_is_configured(ladon: Command) -> None:
    """Prefect knows the run, the file says everything, and the outcome is the same table."""
    async with FeedServer(catalogue(1, 2)) as feed:
        ladon.write("own.py", OWN)
        ladon.write("ladon.toml", project(feed, '[sources.broken]\nkind = "own:Broken"\n'))
        async with get_client() as client:
            before = await runs(client)
            called = await ladon.later("collect", "kev", "broken", "--json")
            assert await runs(client) == before + 2, called.err
    assert called.code == 1
    done, failed = called.json
    assert (done["outcome"], done["records_new"]) == ("done", 2)
    assert failed["error"].startswith("KeyError: 'missing' (own.py, line ")


async def test_no_prefect_collects_at_once_where_prefect_is_configured(ladon: Command) -> None:
    """``--no-prefect`` leaves Prefect out of it."""
    async with FeedServer(catalogue(1)) as feed, get_client() as client:
        ladon.write("ladon.toml", project(feed))
        before = await runs(client)
        assert (await ladon.later("collect", "kev", "--no-prefect")).code == 0
        assert await runs(client) == before


async def test_stale_source_fails_the_flow_and_the_command(ladon: Command) -> None:
    """What the flow raises is one sentence, and exit code 1."""
    ladon.write("ladon.toml", '[storage]\nurl = "sqlite:///ladon.db"\n')
    called = await ladon.later("freshness", "kev=1")
    assert (called.code, called.out) == (1, "")
    assert "kev (never collected, limit 1 h)" in called.err.splitlines()[-1]


@pytest.mark.slow
async def test_backfill_and_reconciliation_run_as_flows(ladon: Command) -> None:
    """Both verbs print what their flows return."""
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed:
        ladon.write("ladon.toml", project(feed))
        filled = await ladon.later("backfill", "kev", "2024-01-01", "2024-01-03", "--json")
        assert (await ladon.later("collect", "kev")).code == 0
        compared = await ladon.later("reconcile", "kev", "--json")
    assert (filled.code, filled.json["windows"]) == (0, 2)
    assert (compared.code, compared.json["missed"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_deployed")
async def test_deploy_says_what_it_changes_and_keeps_what_a_person_switched(
    ladon: Command,
) -> None:
    """A dry run changes nothing; a deployment that is paused in the UI stays paused."""
    name = "collect-kev/kev"
    async with FeedServer(catalogue(1)) as feed, get_client() as client:
        ladon.write("own.py", OWN)
        more = SCHEDULE + '[sources.mine]\nkind = "own:Own"\n'
        ladon.write("ladon.toml", project(feed, more))
        await client.create_work_pool(WorkPoolCreate(name="of-the-command", type="process"))
        planned = await ladon.later("deploy", "--dry-run", "--json")
        assert {each["deployment"]: each["change"] for each in planned.json} == {
            name: "create",
            "reconcile/kev": "create",
            "collect/mine": "create",
        }
        with pytest.raises(ObjectNotFound):
            await client.read_deployment_by_name(name)
        assert (await ladon.later("deploy", "--pool", "of-the-command")).code == 0
        made = await client.read_deployment_by_name(name)
        assert made.parameters["sink"] == {"url": f"sqlite:///{ladon.folder}/records.db"}
        assert made.parameters["storage"] == {"url": f"sqlite:///{ladon.folder}/ladon.db"}
        assert made.entrypoint == "ladon_storage.flows.collect.collect_kev"
        await client.pause_deployment(made.id)
        ladon.write("ladon.toml", project(feed, more.replace("0 6", "0 7")))
        changed = await ladon.later("deploy", "kev", "--pool", "of-the-command", "--json")
        assert changed.json[0]["because"] == "schedule"
        made = await client.read_deployment_by_name(name)
        assert made.paused
        assert [str(each.schedule.cron) for each in made.schedules] == ["0 7 * * *"]  # type: ignore[union-attr]
        kept = await ladon.later("deploy", "--dry-run", "--json")
        assert {each["change"] for each in kept.json} == {"keep"}
        missing = await ladon.later("deploy", "--pool", "nowhere")
        assert missing.code == 2
        assert "prefect work-pool create nowhere" in missing.err


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_deployed")
async def test_deploy_switches_a_schedule_as_the_file_says_or_else_leaves_it(
    ladon: Command,
) -> None:
    """`schedule.active` of the file wins, for the second reading too; unset, the UI's is kept."""
    collects, reads = "collect-kev/kev", "reconcile/kev"
    off, on = (f"schedule.active = {each}\n" for each in ("false", "true"))
    at_seven = SCHEDULE.replace("0 6", "0 7")

    async with FeedServer() as feed, get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="of-switches", type="process"))

        async def deploy(schedule: str) -> dict[str, tuple[str, bool, bool]]:
            ladon.write("ladon.toml", project(feed, schedule))
            called = await ladon.later("deploy", "--pool", "of-switches", "--json")
            assert called.code == 0, called.err
            found = {}
            for each in called.json:
                made = await client.read_deployment_by_name(each["deployment"])
                told = "not active" not in each["schedule"]
                active = any(one.active for one in made.schedules)
                found[each["deployment"]] = (each["change"], told, active)
            return found

        async def pause() -> None:
            made = await client.read_deployment_by_name(collects)
            await client.update_deployment_schedule(made.id, made.schedules[0].id, active=False)

        assert set((await deploy(SCHEDULE)).values()) == {("create", True, True)}
        switched = await deploy(SCHEDULE + off)
        assert switched == dict.fromkeys((collects, reads), ("update", False, False))
        again = await deploy(SCHEDULE + off)
        assert set(again.values()) == {("keep", False, False)}
        assert set((await deploy(SCHEDULE)).values()) == {("keep", False, False)}
        assert set((await deploy(SCHEDULE + on)).values()) == {("update", True, True)}
        await pause()
        assert (await deploy(SCHEDULE))[collects] == ("keep", False, False)
        assert (await deploy(at_seven))[collects] == ("update", False, False)
        assert (await deploy(at_seven + on))[collects] == ("update", True, True)
        none = await deploy(off)  # as where it overrides a default schedule
        assert none == {collects: ("update", True, False), reads: ("update", False, False)}


async def test_deploy_to_a_pool_names_the_classes_that_workers_need(ladon: Command) -> None:
    """A module next to the file is on no worker; one that is installed is found there too."""
    own = '[sources.a]\nkind = "own:Own"\nsource_id = "a"\n[sources.b]\nkind = "own:Broken"\n'
    installed = '[sources.c]\nkind = "tests.own_classes:Tickets"\nproject = "p"\n'
    async with FeedServer() as feed, get_client() as client:
        ladon.write("own.py", OWN)
        ladon.write("ladon.toml", project(feed, own + installed))
        await client.create_work_pool(WorkPoolCreate(name="of-workers", type="process"))
        called = await ladon.later("deploy", "--pool", "of-workers", "--dry-run")
        here = await ladon.later("deploy", "--dry-run")
    assert called.code == 0, called.err
    lines = [line for line in called.err.splitlines() if "Workers need" in line]
    assert lines == [
        f"own:{each} is in a module beside ladon.toml. Workers need the module installed."
        for each in ("Broken", "Own")
    ]
    assert "Workers need" not in here.err


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_deployed")
async def test_deploy_makes_a_check_and_weekly_second_readings(ladon: Command) -> None:
    """A file has them without a word; twice deployed changes nothing; what it lost is reported."""
    pool = "of-the-file"
    file = """
        [storage]
        url = "sqlite:///ladon.db"
        [sinks.records]
        url = "sqlite:///records.db"
        [defaults]
        schedule.cron = "5 * * * *"
        freshness.max_age_hours = 48
        [sources.kev2]
        kind = "kev"
        [sources.nvd2]
        kind = "nvd"
        schedule.interval = 7200
        [sources.hooks]
        kind = "urlhaus"
        via = "api"
        key = "abuse-ch-key"
        [sources.quiet]
        kind = "otx"
        key = "otx-key"
        reconcile.active = false
        [sources.table]
        kind = "sql"
        url_secret = "DB"
        table = "events"
        id_column = "id"
        timestamp_column = "at"
        reconcile = { last_days = 3, cron = "0 1 * * 6" }
    """
    ladon.write("feeds.toml", file)
    more = ("--file", "feeds.toml", "--pool", pool)
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        made = await ladon.later("deploy", *more, "--json")
        assert made.code == 0, made.err
        again = await ladon.later("deploy", *more, "--json")
        reading = await client.read_deployment_by_name("reconcile/nvd2")
        whole = await client.read_deployment_by_name("reconcile/kev2")
        check = await client.read_deployment_by_name("check-freshness/feeds")
        before = (await client.read_deployment_by_name("collect-kev/kev2")).updated
        ladon.write("feeds.toml", file.replace("kev2", "kev3"))
        lost = await ladon.later("deploy", *more, "--dry-run", "--json")
        assert (await client.read_deployment_by_name("collect-kev/kev2")).updated == before
    names = {each["deployment"] for each in made.json}
    assert names == {
        "check-freshness/feeds",
        "collect-kev/kev2",
        "reconcile/kev2",
        "collect-nvd/nvd2",
        "reconcile/nvd2",
        "collect-urlhaus/hooks",
        "collect-otx/quiet",
        "collect-sql/table",
        "reconcile/table",
    }
    schedules = {each["deployment"]: each["schedule"] for each in made.json}
    assert schedules["reconcile/table"] == "0 1 * * 6"
    assert schedules["reconcile/kev2"].endswith("* * 0")
    assert [(each["change"], each["because"]) for each in again.json] == [("keep", "")] * 9
    assert (reading.parameters["last_days"], "last_days" in whole.parameters) == (30, False)
    assert reading.parameters["storage"] == {"url": f"sqlite:///{ladon.folder}/ladon.db"}
    assert {each["source_id"] for each in check.parameters["sources"]} >= {"kev2", "nvd2", "table"}
    changes = {each["deployment"]: each["change"] for each in lost.json}
    assert changes["collect-kev/kev3"] == changes["reconcile/kev3"] == "create"
    assert changes["collect-kev/kev2"] == changes["reconcile/kev2"] == "removed"
    assert changes["check-freshness/feeds"] == "update"


FLEET = """
    [storage]
    url = "sqlite:///ladon.db"
    [sinks.records]
    url = "sqlite:///records.db"
    [collect_many]
    schedule.cron = "20 * * * *"
    spread = 3
    concurrency = 2
    [sources.one]
    kind = "kev"
    url = "URL"
    [sources.two]
    kind = "kev"
    url = "URL"
    schedule.cron = "0 6 * * *"
"""


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_deployed")
async def test_deploy_makes_one_deployment_of_many_sources(ladon: Command) -> None:
    """It has the schedule and the workers of its table, and collects what no other one does."""
    pool = "of-the-fleet"
    async with FeedServer(play=lambda asked: catalogue(1)) as feed, get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        alone = FLEET.replace("URL", feed.url).replace("spread = 3", "")
        ladon.write("fleet.toml", alone)
        more = ("--file", "fleet.toml", "--pool", pool)
        first = await ladon.later("deploy", *more, "--json")
        made = await client.read_deployment_by_name("collect-many/fleet")
        assert made.global_concurrency_limit
        assert made.global_concurrency_limit.limit == 1
        again = await ladon.later("deploy", *more, "--json")
        ladon.write("fleet.toml", FLEET.replace("URL", feed.url))
        shared = await ladon.later("deploy", *more)
        made = await client.read_deployment_by_name("collect-many/fleet")
        report = await flows.collect_many(**made.parameters)
    [weekly] = [each["schedule"] for each in first.json if each["deployment"] == "reconcile/two"]
    assert {each["deployment"]: each["schedule"] for each in first.json} == {
        "collect-many/fleet": "20 * * * *",
        "collect-kev/two": "0 6 * * *",
        "reconcile/two": weekly,
    }
    assert "1 source has a schedule of its own beside [collect_many]" in first.err
    assert {each["change"] for each in again.json} == {"keep"}
    assert "collect-many/fleet" in shared.out
    assert made.entrypoint == "ladon_storage.flows.collect_many.collect_many"
    file = str(ladon.folder / "fleet.toml")
    assert made.parameters == {"file": file, "spread": 3, "concurrency": 2}
    # Its parts are runs of its own, which a limit of one would keep waiting.
    assert made.global_concurrency_limit is None
    assert (report.sources, report.records_written) == (2, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_deployed")
async def test_deployment_whose_source_another_one_collects_now_loses_its_schedule(
    ladon: Command,
) -> None:
    """Its source would be collected twice; all else of it stays, and it can be scheduled again."""
    pool, when = "of-a-move", 'schedule.cron = "0 6 * * *"\n'
    many, sink = (
        '[collect_many]\nschedule.cron = "20 * * * *"\n',
        '[sinks.r]\nurl = "sqlite:///r.db"\n',
    )
    kev, nvd = '[sources.kev]\nkind = "kev"\n', f'[sources.nvd]\nkind = "nvd"\n{when}'
    async with get_client() as client:

        async def schedules(name: str) -> int:
            return len((await client.read_deployment_by_name(name)).schedules)

        async def deployed(text: str) -> dict[str, tuple[str, str]]:
            ladon.write("ladon.toml", text)
            planned = await ladon.later("deploy", "--dry-run", "--json")
            called = await ladon.later("deploy", "--pool", pool, "--json")
            assert called.code == 0
            rows = {each["deployment"]: each for each in called.json}
            assert rows.keys() == {each["deployment"] for each in planned.json}
            for name, row in rows.items():
                is_left = row["change"] in ("removed", "unschedule")
                assert (f"`prefect deployment delete {name}`" in row["because"]) == is_left
            return {name: (row["change"], row["schedule"]) for name, row in rows.items()}

        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        await deployed(sink + kev + when + nvd)
        ladon.write("ladon.toml", many + sink + kev)
        assert (await ladon.later("deploy", "--pool", "nowhere")).code == 2
        assert await schedules("collect-kev/kev") == 1
        rows = await deployed(many + sink + kev)
        assert rows["collect-kev/kev"] == ("unschedule", "none")
        assert await schedules("collect-kev/kev") == 0
        # A source that is not in the file any more is collected once, as it was.
        assert rows["collect-nvd/nvd"] == ("removed", "0 6 * * *")
        assert await schedules("collect-nvd/nvd") == 1
        rows = await deployed(many + sink + kev)
        assert rows["collect-kev/kev"] == ("removed", "none")
        assert rows["collect-many/ladon"] == ("keep", "20 * * * *")
        rows = await deployed(sink + kev + nvd)  # kev has no other schedule
        assert rows["collect-many/ladon"] == ("removed", "20 * * * *")
        rows = await deployed(sink + kev + when + nvd)
        assert rows["collect-many/ladon"] == ("unschedule", "none")
        assert await schedules("collect-many/ladon") == 0
        back = await client.read_deployment_by_name("collect-kev/kev")
        assert (len(back.schedules), back.paused) == (1, False)
        # Another flow collects the source, or a deployment of another name.
        rows = await deployed(sink + kev.replace('"kev"', '"nvd"') + when + nvd)
        assert rows["collect-nvd/kev"][0] == "create"
        assert rows["collect-kev/kev"] == ("unschedule", "none")
        (ladon.folder / "other").mkdir()
        other = ladon.write("other/ladon.toml", many + sink + kev)
        called = await ladon.later("deploy", "--file", str(other), "--pool", pool, "--json")
        assert called.code == 0
        assert {each["change"] for each in called.json} == {"update", "removed"}
        assert await schedules("collect-nvd/kev") == 1  # into another sink
        renamed = nvd.replace("sources.nvd", "sources.cves") + 'source_id = "nvd"\n'
        rows = await deployed(sink + kev + when + renamed.replace(when, ""))
        assert rows["collect-nvd/nvd"] == ("removed", "0 6 * * *")  # its last one
        assert rows["collect-nvd/kev"] == ("unschedule", "none")
        rows = await deployed(sink + kev + when + renamed)
        assert rows["collect-nvd/nvd"] == ("unschedule", "none")
        assert await schedules("collect-nvd/cves") == await schedules("collect-kev/kev") == 1


@pytest.mark.usefixtures("nothing_deployed")
@pytest.mark.parametrize("table", ["[collect_many]", "[collect_many]\nschedule.active = false"])
async def test_deployment_of_many_sources_needs_no_schedule(ladon: Command, table: str) -> None:
    """It is then started by hand, and each source keeps a deployment of its own."""
    ladon.write(
        "ladon.toml",
        f'{table}\n[sinks.r]\nurl = "sqlite:///r.db"\n'
        '[sources.kev]\nkind = "kev"\nschedule.cron = "0 6 * * *"\n[sources.nvd]\nkind = "nvd"\n',
    )
    planned = await ladon.later("deploy", "--dry-run", "--json")
    schedules = {each["deployment"]: each["schedule"] for each in planned.json}
    assert schedules["collect-many/ladon"] == schedules["collect-nvd/nvd"] == "none"
    assert schedules["collect-kev/kev"] == "0 6 * * *"
    assert "beside [collect_many]" not in planned.err
    named = await ladon.later("deploy", "kev", "--dry-run", "--json")
    assert "collect-many/ladon" not in {each["deployment"] for each in named.json}


def test_second_reading_that_the_file_sets_needs_no_schedule_of_its_source(tmp_path: Path) -> None:
    """It reads again what ``[collect_many]`` collects; one that is not set is not made."""
    path = tmp_path / "ladon.toml"
    text = '[sinks.r]\nurl = "sqlite:///r.db"\n[sources.kev]\nkind = "kev"\n'
    path.write_text(f'[collect_many]\nschedule.cron = "20 * * * *"\n{text}')
    assert not read_again(Project.load(path))
    path.write_text(f"{path.read_text()}reconcile.last_days = 7\n")
    [made] = read_again(Project.load(path))
    assert (made.full_name, made.parameters["last_days"]) == ("reconcile/kev", 7)
    path.write_text(f"{text}reconcile.last_days = 7\n")
    assert not read_again(Project.load(path))  # it has deployments of its own


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_deployed")
async def test_deployment_of_another_file_of_the_same_name_is_said_to_be_replaced(
    ladon: Command,
) -> None:
    """Deployments are named by their files, and the sources of the first file are then left out."""
    text = '[collect_many]\n[sinks.r]\nurl = "sqlite:///r.db"\n[sources.kev]\nkind = "kev"\n'
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="of-two", type="process"))
    for folder in ("a", "b"):
        (ladon.folder / folder).mkdir()
        file = ladon.write(f"{folder}/ladon.toml", text)
        called = await ladon.later("deploy", "--file", str(file), "--pool", "of-two", "--json")
    [many] = [each for each in called.json if each["deployment"] == "collect-many/ladon"]
    first = ladon.folder / "a" / "ladon.toml"
    assert (many["change"], f"it collected the sources of {first}" in many["because"]) == (
        "update", True
    )  # fmt: skip


async def test_many_sources_without_one_sink_are_not_deployed(ladon: Command) -> None:
    """The run would fail each time; a file without the table has no such deployment."""
    file = (
        '[sinks.r]\nurl = "sqlite:///r.db"\n[sinks.s]\nurl = "sqlite:///s.db"\n'
        '[sources.kev]\nkind = "kev"\nsink = "r"\n[sources.nvd]\nkind = "nvd"\nsink = "s"\n'
    )
    ladon.write("ladon.toml", file)
    assert not made_of_many(Project.load(ladon.folder / "ladon.toml"))
    ladon.write("ladon.toml", f"[collect_many]\n{file}")
    called = await ladon.later("deploy", "--dry-run")
    assert called.code == 2
    assert "[collect_many] cannot be deployed" in called.err
    assert "several sinks, r, s" in called.err


@pytest.mark.parametrize(
    ("file", "source", "step"),
    [
        ("ladon.toml", "a/b", "Rename the source, and set its source_id to 'a/b'"),
        ("ladon.toml", "50%", "Rename the source, and set its source_id to '50%'"),
        ("this&that.toml", "kev", "Rename the file."),
    ],
)
def test_name_that_prefect_refuses_is_named_before_anything_is_made(
    tmp_path: Path, file: str, source: str, step: str
) -> None:
    """Otherwise some deployments would be made, and one would fail with an error of Prefect's."""
    path = tmp_path / file
    path.write_text(
        f'[collect_many]\n[sinks.r]\nurl = "sqlite:///r.db"\n[sources."{source}"]\nkind = "kev"\n'
    )
    project = Project.load(path)
    with pytest.raises(ConfigurationError, match="Prefect takes no deployment called") as caught:
        made_of(project, list(project.sources)) + made_of_many(project)
    assert step in str(caught.value)


@pytest.mark.slow
def test_weekly_readings_of_a_file_are_those_of_prefect_yaml(tmp_path: Path) -> None:
    """The same sources are read again by both, from the same day on."""
    described = yaml.safe_load(DEPLOYMENTS_FILE.read_text(encoding="utf-8"))["deployments"]
    collected = {
        each["name"]: each["parameters"]["source"]
        for each in described
        if "flows/collect.py" in each["entrypoint"] and each.get("schedules")
    }
    again = {
        each["name"]: each["parameters"].get("last_days")
        for each in described
        if "flows/reconcile.py" in each["entrypoint"]
    }
    lines = ['[sinks.r]\nurl = "sqlite:///r.db"\n[defaults]\nschedule.cron = "0 6 * * *"']
    for name, fields in collected.items():
        lines.append(f"[sources.{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    file = tmp_path / "ladon.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    made = made_of(Project.load(file), list(collected))
    found = {
        each.name: each.parameters.get("last_days")
        for each in made
        if each.full_name.startswith("reconcile/")
    }
    assert found == again


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["deploy"], "--serve"),
        (["deploy", "--serve", "--pool", "x"], "not both"),
        (["deploy", "nosuch", "--dry-run"], "nosuch"),
    ],
)
async def test_deploy_that_cannot_be_meant_is_refused(
    ladon: Command, arguments: list[str], expected: str
) -> None:
    """One sentence, before Prefect is asked."""
    ladon.write("ladon.toml", '[sinks.r]\nurl = "sqlite:///r.db"\n[sources.kev]\nkind = "kev"\n')
    called = ladon(*arguments)
    assert called.code == 2
    assert expected in called.sentence


@pytest.mark.slow
async def test_prefect_that_does_not_answer_is_one_sentence(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything begins, each verb says so, and what to do."""
    ladon.write("ladon.toml", '[sinks.r]\nurl = "sqlite:///r.db"\n[sources.kev]\nkind = "kev"\n')
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        for verb in ("collect", "reconcile"):
            called = await ladon.later(verb, "kev")
            assert called.code == 2, called
            assert "Prefect's API at http://127.0.0.1:9/api does not answer" in called.err


@pytest.mark.parametrize("address", ["127.0.0.1:4200/api", "localhost:4200/api", "http:///api"])
async def test_prefect_without_an_address_is_one_sentence(ladon: Command, address: str) -> None:
    """A scheme or a host that was forgotten is a wrong setting, and no error of another package."""
    ladon.write("ladon.toml", '[sinks.r]\nurl = "sqlite:///r.db"\n[sources.kev]\nkind = "kev"\n')
    with temporary_settings({PREFECT_API_URL: address}):
        called = await ladon.later("deploy", "--dry-run")
    assert called.code == 2
    step = "PREFECT_API_URL is no address. Write it as http://127.0.0.1:4200/api."
    assert called.err.splitlines()[-1] == f"ladon-storage: {step}"


async def test_doctor_asks_prefect_and_the_storage(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each check has a verdict; one that fails has a next step, and exit code 1."""
    ladon.write("ladon.toml", '[storage]\nurl = "sqlite:///ladon.db"\n')
    well = await ladon.later("doctor", "--json")
    verdicts = {each["what"]: each["verdict"] for each in well.json}
    assert well.code == 0
    for name in ("versions", "Prefect", "file", "storage", "Prefect API", "Prefect server"):
        assert verdicts[name] == "ok", name
    assert verdicts["clock"] == verdicts["log"] == "ok"
    assert {"block Storage Service", "block Record Sink"} <= set(verdicts)
    with monkeypatch.context() as patch:
        patch.setattr("ladon_storage.cli.doctor.MAX_SKEW", timedelta(days=-1))
        skewed = await ladon.later("doctor", "--json")
    [clock] = [each for each in skewed.json if each["what"] == "clock"]
    assert (clock["verdict"], "Synchronise" in clock["next_step"]) == ("warning", True)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "ERROR")
    ladon.write("ladon.toml", '[storage]\nurl = "http://127.0.0.1:9"\n')
    ill = await ladon.later("doctor", "--json")
    checks = {each["what"]: each for each in ill.json}
    assert ill.code == 1
    assert checks["storage"]["verdict"] == checks["Prefect API"]["verdict"] == "failed"
    assert "PREFECT_API_URL" in checks["Prefect API"]["next_step"]
    assert checks["log"]["verdict"] == "warning"


async def test_automations_of_a_circuit_are_made_for_deployments_that_exist(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both automations are named; without a deployment, or of one that is not there, none is."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", "http://storage.example:8000")
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name="of-the-circuit", type="process"))
    made = await ladon.later("circuit", "automate", "--work-pool", "of-the-circuit", "--json")
    assert made.code == 0
    assert [each.partition(":")[0] for each in made.json] == [
        "Pause collections while the circuit is open",
        "Resume collections when the circuit closes",
    ]
    for arguments in ((), ("--deployment", "nosuch/one")):
        assert (await ladon.later("circuit", "automate", *arguments)).code == 2


@pytest.mark.slow
async def test_list_of_sources_is_one_flow_run(ladon: Command) -> None:
    """``collect-many`` prints one report; a list that is not there is one sentence."""
    async with FeedServer(play=lambda asked: catalogue(1, 2)) as feed, get_client() as client:
        ladon.write("list.json", json.dumps([{"kind": "kev", "url": feed.url}]))
        before = await runs(client)
        sink = ("--sink", "sqlite:///records.db")
        called = await ladon.later("collect-many", "list.json", *sink, "--json")
        assert await runs(client) == before + 1
    assert (called.code, called.json["records_new"]) == (0, 2)
    async with FeedServer(play=lambda asked: catalogue(1, 2, 3)) as feed:
        wrong = {"kind": "kev", "source_id": "down", "url": "http://127.0.0.1:9/"}
        ladon.write("two.json", json.dumps([{"kind": "kev", "url": feed.url}, wrong]))
        failed = await ladon.later("collect-many", "two.json", *sink, "--json")
    assert (failed.code, failed.json["sources"], failed.json["failed"]) == (1, 2, 1)
    assert failed.json["records_new"] == 1
    assert list(failed.json["failures"]) == ["down"]
    assert "1 of 2 sources failed: down (" in failed.err
    missing = await ladon.later("collect-many", "nowhere.toml", *sink)
    assert missing.code == 2
    assert "nowhere.toml" in missing.err
    assert (await ladon.later("collect-many", "list.json", *sink, "--concurrency", "0")).code == 2


async def test_sweep_prints_the_runs_that_it_crashed(ladon: Command) -> None:
    """Where nothing vanished it prints nothing, and no heartbeat is refused."""
    called = await ladon.later("sweep", "--heartbeat", "600", "--json")
    assert (called.code, called.json) == (0, [])
    assert (await ladon.later("sweep", "--heartbeat", "0")).code == 2


@pytest.mark.parametrize("given", ["5", "29.9", "soon", "nan"])
async def test_sweep_refuses_an_interval_that_no_runs_have(
    ladon: Command, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would mark live runs as crashed; Prefect's own words for it are not a sentence."""
    called = await ladon.later("sweep", "--heartbeat", given)
    assert called.code == 2
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", given)
    called = await ladon.later("sweep")
    assert called.code == 2
    assert f"PREFECT_FLOWS_HEARTBEAT_FREQUENCY is {given}. " in called.sentence


@pytest.mark.parametrize("more", [[], ["--serve", "--pool", "x"], ["--serve", "--dry-run"]])
def test_table_of_deployments_is_only_served(ladon: Command, more: list[str]) -> None:
    """What Prefect's own command does with a prefect.yaml is left to it."""
    called = ladon("deploy", "--table", "prefect.yaml", *more)
    assert called.code == 2
    assert "prefect deploy" in called.sentence


def test_settings_of_the_local_server_are_prefects() -> None:
    """A setting that Prefect does not know, or knows no more, would change nothing in silence."""
    known = {name.upper() for name in _get_settings_fields(Settings)}
    assert {*SERVER, *RUNS} <= known


@pytest.mark.parametrize(
    "storage",
    [
        'token = "STORAGE_SERVICE_TOKEN"',
        'token = "MY_TOKEN"\ncircuit_url = "redis://redis.example"',
        'username = "ladon"\npassword = "MY_PASSWORD"\nenvironment = "development"',
        'circuit_url_secret = "MY_CIRCUITS"',
    ],
)
async def test_served_runs_have_the_storage_of_the_file_with_its_secrets(
    ladon: Command, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parameter would show them, so the environment of the runs has them by the usual names."""
    for name in ("STORAGE_SERVICE_TOKEN", "MY_TOKEN", "MY_PASSWORD", "MY_CIRCUITS"):
        monkeypatch.setenv(name, f"redis://:{name}@redis.example")
    text = f'[storage]\nurl = "https://storage.example"\n{storage}\n'
    read = Project.load(ladon.write("ladon.toml", text))
    variables = await storage_variables(read)
    assert StorageSettings.from_environment(variables) == await read.storage_settings()
    plain = Project.load(ladon.write("ladon.toml", '[storage]\nurl = "https://storage.example"\n'))
    assert await storage_variables(plain) == {}


async def test_file_of_a_storage_beside_a_secret_circuit_is_given_to_runs(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address has no user and no host."""
    monkeypatch.setenv("MY_CIRCUITS", "redis://redis.example")
    text = '[storage]\nurl = "sqlite:///storage.db"\ncircuit_url_secret = "MY_CIRCUITS"\n'
    read = Project.load(ladon.write("ladon.toml", text))
    variables = await storage_variables(read)
    assert StorageSettings.from_environment(variables) == await read.storage_settings()


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ("timeout = 5\nmax_connections = 7", "timeout and max_connections cannot be given"),
        ("", "MY_TOKEN"),
    ],
    ids=["no variable", "no secret"],
)
async def test_serve_says_where_its_runs_find_a_storage_that_it_cannot_give_them(
    ladon: Command, storage: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the settings would be other settings; whoever has saved the block goes on."""
    monkeypatch.delenv("STORAGE_SERVICE_URL", raising=False)
    monkeypatch.delenv("MY_TOKEN", raising=False)
    if storage:
        monkeypatch.setenv("MY_TOKEN", "s3cret")
    served: list[object] = []

    async def serve(made: object) -> None:
        served.append(made)
        assert "STORAGE_SERVICE_URL" not in os.environ

    monkeypatch.setattr("ladon_storage.flows.serve.serve_deployments", serve)
    head = f'[storage]\nurl = "https://storage.example"\ntoken = "MY_TOKEN"\n{storage}\n'
    sink = '[sinks.r]\nurl = "sqlite:///r.db"\n'
    ladon.write("ladon.toml", f'{head}{sink}[sources.kev]\nkind = "kev"\n')
    called = await ladon.later("deploy", "--serve")
    assert (called.code, len(served)) == (0, 1), called.err
    said = " ".join(called.err.split())
    assert why in said
    assert "Storage Service block called default" in said
    assert "s3cret" not in called.err


async def test_deployed_paths_are_absolute_whatever_the_folder_is_called(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run starts in a folder of its own, and finds the files of the one with the file."""
    served: list[RunnerDeployment] = []

    async def serve(made: list[RunnerDeployment]) -> None:
        served.extend(made)

    monkeypatch.setattr("ladon_storage.flows.serve.serve_deployments", serve)
    folder = ladon.folder / "feeds%20test"
    folder.mkdir()
    monkeypatch.chdir(folder)
    storage = '[storage]\nurl = "https://storage.example"\ncircuit_url = "sqlite:///c.db"\n'
    (folder / "ladon.toml").write_text(
        f'{storage}[sinks.r]\nurl = "sqlite:///r.db"\n[sources.kev]\nkind = "kev"\n'
    )
    called = await ladon.later("deploy", "--serve")
    assert called.code == 0, called.err
    [given] = [each.parameters or {} for each in served]
    at = f"sqlite:///{ladon.folder}/feeds%2520test"
    assert given["sink"]["url"] == f"{at}/r.db"
    assert given["storage"]["circuit_url"] == f"{at}/c.db"


async def test_serve_gives_its_runs_the_storage_of_the_file(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of runs inherit the environment, in which the token has the usual name."""
    monkeypatch.setenv("STORAGE_SERVICE_URL", "https://another.example")
    monkeypatch.setenv("STORAGE_SERVICE_TOKEN", "another")
    monkeypatch.setenv("ENVIRONMENT", "")
    monkeypatch.setenv("MY_TOKEN", "s3cret")
    given: dict[str, str] = {}

    async def serve(_: object) -> None:
        given.update(os.environ)

    monkeypatch.setattr("ladon_storage.flows.serve.serve_deployments", serve)
    storage = '[storage]\nurl = "https://storage.example"\ntoken = "MY_TOKEN"\n'
    sink = '[sinks.r]\nurl = "sqlite:///r.db"\n'
    ladon.write("ladon.toml", f'{storage}{sink}[sources.kev]\nkind = "kev"\n')
    called = await ladon.later("deploy", "--serve")
    assert called.code == 0, called.err
    assert "STORAGE_SERVICE_TOKEN" not in called.err, "nobody has to give it to a worker"
    assert given["STORAGE_SERVICE_URL"] == "https://storage.example"
    assert given["STORAGE_SERVICE_TOKEN"] == "s3cret"
