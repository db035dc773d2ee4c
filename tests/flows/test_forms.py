"""The forms of the flows in Prefect's UIs, as the schemas that both UIs read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.exceptions import ParameterTypeError
from prefect.flow_engine import run_flow
from prefect.utilities.callables import parameter_schema
from pydantic import SecretStr

from ladon_storage import flows
from ladon_storage.blocks import RecordSink, StorageService
from ladon_storage.collection.protocols import Limits
from ladon_storage.errors import ConfigurationError
from ladon_storage.flows.forms import titles_of
from ladon_storage.sources import SOURCES
from ladon_storage.sources.sql.source import SqlTable
from tests.own_classes import Tickets, TicketsData, TicketsPlain, TicketsUndescribed

KINDS = sorted(SOURCES.shipped)
FLOWS = ["collect", "backfill", "reconcile", "collect_many", "check_freshness", "probe_storage"]


def form_of(name: str) -> dict[str, Any]:
    """Return the schema as a deployment has it."""
    return parameter_schema(getattr(flows, name)).model_dump_for_openapi()


def source_fields(kind: str) -> dict[str, Any]:
    form = form_of(f"collect_{kind}")
    definition = form["properties"]["source"]["$ref"].rpartition("/")[2]
    fields: dict[str, Any] = form["definitions"][definition]
    return fields


@pytest.mark.parametrize("kind", KINDS)
def test_required_fields_come_first_and_the_kind_last(kind: str) -> None:
    """The order is that of the positions, too, which a database of JSON keeps."""
    source = source_fields(kind)
    names, required = list(source["properties"]), set(source.get("required", ()))
    assert set(names[: len(required)]) == required
    assert names[-1] == "kind"
    assert [each["position"] for each in source["properties"].values()] == list(range(len(names)))


@pytest.mark.parametrize("name", [*FLOWS, *(f"collect_{kind}" for kind in KINDS)])
def test_every_field_has_a_title_of_its_own_and_every_tab_one(name: str) -> None:
    """No name of a type or of Python is shown, and no choice is an editor of JSON."""
    form = form_of(name)

    def look(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                look(each)
        if not isinstance(node, dict):
            return
        assert "oneOf" not in node
        for each in node.get("anyOf", ()):
            assert each.get("title"), node
            assert each["title"] not in {"Field", "str", "dict", "RecordSink", "StorageService"}
        for each in node.values():
            look(each)

    look(form)
    titles = [each["title"] for each in form["properties"].values()]
    if "source" in form["properties"] and name != "collect" and "_" in name:
        titles += [each["title"] for each in source_fields(name[8:])["properties"].values()]
    assert len(set(titles)) == len(titles)
    assert all(each[0].isupper() and "_" not in each for each in titles)
    assert "``" not in str(form)


def test_paging_is_a_choice() -> None:
    """Each kind of pagination is a tab, whose first is the default."""
    paging = source_fields("rest")["properties"]["paging"]
    tabs = [each["title"] for each in paging["anyOf"]]
    assert tabs[0] == "One document"
    assert {"Page numbers", "Offsets", "Next link", "Cursor", "Link header"} == set(tabs[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_no_default_is_a_long_fraction(kind: str) -> None:
    """A duration that is no short number of its unit is shown as a time."""
    for field in source_fields(kind)["properties"].values():
        default = field.get("default")
        assert not isinstance(default, float) or round(default, 2) == default, field
    if kind == "sql":
        overlap = source_fields(kind)["properties"]["overlap"]
        assert (overlap["title"], overlap["default"]) == ("Overlap", "00:10:00")
        read = SqlTable(source_id="x", url="sqlite:///x.db", table="x", overlap=overlap["default"])
        assert read.overlap == timedelta(minutes=10)


def tab_of(value: dict[str, Any], form: dict[str, Any], field: dict[str, Any]) -> str:
    """Return the title of the tab in which both UIs show a value: by most keys, first of all."""
    alternatives = [
        form["definitions"].get(each.get("$ref", "").rpartition("/")[2], each)
        for each in field["anyOf"]
    ]
    counts = [len(value.keys() & each.get("properties", {}).keys()) for each in alternatives]
    title: str = field["anyOf"][counts.index(max(counts))]["title"]
    return title


@pytest.mark.parametrize("name", ["collect", "backfill", "reconcile"])
@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_a_source_is_a_choice(name: str, kind: str) -> None:
    """Each kind has a form, in which both UIs show it, or is in a list; no JSON is needed."""
    form = form_of(name)
    source = form["properties"]["source"]
    tabs = {each["title"]: each for each in source["anyOf"]}
    assert list(tabs) == ["Feed", "JSON API", "SQL table", "Own class"]
    by_kind: dict[str, dict[str, Any]] = {
        "rest": {"source_id": "r", "url": "https://x", "timestamps": ["at"]},
        "sql": {"source_id": "s", "table": "t", "url": "sqlite:///x.db"},
    }
    tab = tab_of({"kind": kind, **by_kind.get(kind, {})}, form, source)
    assert tab == {"rest": "JSON API", "sql": "SQL table"}.get(kind, "Feed")
    if tab == "Feed":
        assert kind in tabs[tab]["properties"]["kind"]["enum"]


def test_each_of_many_sources_is_a_choice() -> None:
    """The list of a fleet has the same choice."""
    sources = form_of("collect_many")["properties"]["sources"]
    listed = next(each for each in sources["anyOf"] if each.get("type") == "array")
    assert listed["items"]["anyOf"][0]["title"] == "Feed"


def test_shared_form_of_feeds_sends_only_what_is_filled() -> None:
    """A default or a null of one kind would be refused by another, or change it."""
    feed = form_of("collect")["properties"]["source"]["anyOf"][0]
    own = {name for name, each in feed["properties"].items() if "default" in each}
    assert own <= {"connection"}
    assert feed["required"] == ["kind"]
    assert next(iter(feed["properties"])) == "kind"
    assert "Required for misp, taxii." in feed["properties"]["url"]["description"]


@pytest.mark.parametrize("name", ["collect", "collect_kev", "collect_many", "reconcile"])
def test_address_of_a_sink_and_settings_of_a_storage_have_tabs_of_their_own(name: str) -> None:
    """What a deployment has in place of a block is shown, and no empty block; no secret fits in."""
    form = form_of(name)
    sink, storage = (form["properties"][each] for each in ("sink", "storage"))
    assert tab_of({"url": "sqlite:///x.db"}, form, sink) == "Address"
    assert tab_of({"url": "sqlite:///x.db"}, form, storage) == "Settings"
    assert tab_of({"$ref": {"block_document_id": "x"}}, form, sink) == "Block"
    settings = next(each for each in storage["anyOf"] if each["title"] == "Settings")
    assert not settings["properties"].keys() & {"token", "password", "circuit_url"}


@pytest.mark.parametrize("kind", ["none", "page", "offset", "next", "cursor", "link"])
def test_both_uis_show_a_whole_paging_in_its_tab(kind: str) -> None:
    """A tab is found by the keys of a value, so one with fewer keys comes first."""
    form = form_of("collect_rest")
    paging = source_fields("rest")["properties"]["paging"]
    for each in paging["anyOf"]:
        fields = form["definitions"][each["$ref"].rpartition("/")[2]]["properties"]
        if fields["kind"]["const"] == kind:
            assert tab_of(dict.fromkeys(fields), form, paging) == each["title"]
            return
    raise AssertionError(kind)


FORM = {
    "source": {"kind": "kev"},
    "since": None,
    "until": None,
    "limits": None,
    "when_busy": "fail",
}


async def run_of_form(flow: Any, parameters: dict[str, Any]) -> Any:
    """Run a deployment's run as a worker does, and return its state."""
    async with get_client() as client:
        flow_id = await client.create_flow(flow)
        deployment = await client.create_deployment(
            flow_id, "form", parameter_openapi_schema=parameter_schema(flow).model_dump()
        )
        run = await client.create_flow_run_from_deployment(deployment, parameters=parameters)
        running: Any = run_flow(flow, flow_run=run, return_type="state")
        await running
        return (await client.read_flow_run(run.id)).state


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({**FORM, "storage": None}, "The tab Block of Sink has no block; choose one there"),
        ({**FORM, "sink": None}, "The tab Block of Storage Service has no block"),
        (FORM, "Sink and of Storage Service"),
    ],
)
async def test_form_whose_tab_of_a_block_has_no_block_is_refused(
    parameters: dict[str, Any], named: str
) -> None:
    """It would run with another sink in silence."""
    state = await run_of_form(flows.collect_kev, parameters)
    assert state.is_failed()
    assert named in state.message


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"sink": {"url": "postgresql://u:hunter2@127.0.0.1:1/d"}}, "save the address in a Record"),
        ({"sink": None, "storage": {"url": "http://u:hunter2@host"}}, "in a Storage Service block"),
    ],
)
async def test_run_by_the_api_with_a_password_is_refused_without_it(
    parameters: dict[str, Any], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect has it already, and shows it nowhere else: neither in the log nor in the state."""
    with caplog.at_level("INFO"):
        state = await run_of_form(flows.collect_kev, {"storage": None, **FORM, **parameters})
    assert state.is_failed()
    assert named in state.message
    assert "hunter2" not in caplog.text + state.message


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        {**FORM, "sink": None, "storage": None},
        {"source": {}},
        {name: value for name, value in FORM.items() if name != "when_busy"},
    ],
    ids=["default", "schedule", "command"],
)
async def test_run_by_schedule_or_with_defaults_is_no_such_form(
    parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a form says with the tab Default is the default, as what others do not say at all.

    A backfill of a deployment with limits by `prefect deployment run` has most parameters, too.
    """
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.delenv("STORAGE_SERVICE_URL", raising=False)
    state = await run_of_form(flows.collect_kev, parameters)
    assert "STORAGE_SERVICE_URL" in state.message  # it came to look for its storage


async def test_run_with_an_address_of_a_sink_says_where_records_go(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a form by `prefect deploy`, an empty tab of a block is the deployment's own sink."""
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.delenv("STORAGE_SERVICE_URL", raising=False)
    url = f"sqlite:///{tmp_path}/own.db"
    with caplog.at_level("INFO", logger="ladon_storage.flows"):
        await run_of_form(flows.collect_kev, {**FORM, "sink": {"url": url}, "storage": None})
    assert f"Records go to {url}, which is the sink of the run's parameters." in caplog.text


def test_limits_as_usual_are_the_defaults() -> None:
    """The folded tab of a form is no value of its own."""
    validated = flows.collect_kev.validate_parameters({"source": {"kind": "kev"}, "limits": None})
    assert validated["limits"] == Limits()


def test_error_of_a_parameter_names_the_field_as_the_form_does() -> None:
    """The title comes first, then the name that a file has."""
    wrong = {"source": {"kind": "kev", "url": "feed.example"}, "limits": {"lease": -1}}
    with pytest.raises(ParameterTypeError) as caught:
        flows.collect_kev.validate_parameters(wrong)
    said = str(caught.value)
    assert " - Source, Address (source.url): should be an address such as https://" in said
    assert " - Limits, Lease (seconds) (limits.lease): " in said
    assert "feed.example" not in said.replace("https://feeds.example.org/", "")


def test_titles_of_a_location_that_is_no_field_are_empty() -> None:
    """What the form does not have is left as Prefect says it."""
    form = form_of("collect_rest")
    assert titles_of(form, "nothing.at.all") == ""
    assert titles_of(form, "source.paging.CursorPagination.parameter").startswith("Source, Paging")


def test_flow_with_other_options_has_the_same_form() -> None:
    """A deployment of a changed flow shows no other fields."""
    other = flows.collect_kev.with_options(name="other", retries=1)
    assert parameter_schema(other).model_dump() == parameter_schema(flows.collect_kev).model_dump()


@pytest.mark.parametrize("name", ["collect_kev", "backfill", "collect_many"])
def test_definition_of_a_block_has_the_title_by_which_prefect_finds_it(name: str) -> None:
    """With another one, Prefect's server refuses each block that is chosen in a form."""
    definitions = form_of(name)["definitions"]
    blocks = {key: each["title"] for key, each in definitions.items() if "block_type_slug" in each}
    assert blocks == {"RecordSink": "RecordSink", "StorageService": "StorageService"}


@pytest.mark.parametrize(("source", "name"), [(Tickets, "tickets"), (TicketsData, "ticketsdata")])
def test_class_of_ones_own_has_a_form_of_its_fields(source: type[Any], name: str) -> None:
    """The form shows the fields of the class, and Prefect finds the flow next to it."""
    flow = flows.flow_of(source)
    form = parameter_schema(flow).model_dump_for_openapi()
    shown = form["definitions"][form["properties"]["source"]["$ref"].rpartition("/")[2]]
    assert {"source_id", "project"} <= set(shown["properties"])
    assert (flow.name, flow.fn.__module__) == (f"collect-{name}", source.__module__)
    assert flow.fn.__qualname__ == f"collect_{name}"


async def test_form_of_a_class_of_ones_own_collects(tmp_path: Path) -> None:
    """What the form sends is made an instance of the class, and collected."""
    flow: Any = flows.flow_of(Tickets)
    form = {
        "source": {"kind": "tickets", "source_id": "own", "project": "P"},
        "sink": RecordSink(url=SecretStr(f"sqlite:///{tmp_path}/records.db")),
        "storage": StorageService(url=f"sqlite:///{tmp_path}/ladon.db"),
    }
    report = await flow(**form)
    assert (report.source_id, report.records_written) == ("own", 2)


def test_class_without_fields_has_no_form() -> None:
    """A plain class is refused with what to do."""
    with pytest.raises(ConfigurationError, match="TicketsPlain has no fields for a form"):
        flows.flow_of(TicketsPlain)


def test_class_without_a_docstring_has_a_form() -> None:
    """A description of one's class is no condition for its form."""
    form = parameter_schema(flows.flow_of(TicketsUndescribed)).model_dump_for_openapi()
    shown = form["properties"]["source"]
    assert shown["description"] == "The fields of the source."
