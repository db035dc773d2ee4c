"""Sources and sinks by name: of this package, of an entry point, and a class of one's own."""

from __future__ import annotations

import subprocess
import sys
import traceback
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from ladon_storage import ConfigurationError, registry
from ladon_storage.collection.protocols import Sink, Source
from ladon_storage.sinks import sink_from
from ladon_storage.sources import source_from
from tests import own_classes
from tests.own_classes import Memory, Tickets, TicketsData, TicketsOfAny, TicketsPlain

HERE = "tests.own_classes"


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Let tests install entry points."""
    installed: list[EntryPoint] = []

    def entry_points(**wanted: Any) -> EntryPoints:
        return EntryPoints(installed).select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return installed


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"kind": f"{HERE}:Tickets", "source_id": "a", "project": "p"},
         Tickets(source_id="a", project="p")),
        ({"kind": f"{HERE}:TicketsData", "source_id": "a"}, TicketsData(source_id="a")),
    ],
)  # fmt: skip
def test_own_class_is_made_with_the_fields(fields: dict[str, Any], made: object) -> None:
    """A model and a dataclass get the fields of the table by keyword."""
    source = source_from(fields)
    assert source == made
    assert isinstance(source, Source)


def test_plain_class_is_made_with_the_fields() -> None:
    """A class without any declaration of fields has those of its constructor."""
    source = source_from({"kind": f"{HERE}:TicketsPlain", "project": "p"})
    assert isinstance(source, TicketsPlain)
    assert source.project == "p"
    of_any = source_from({"kind": f"{HERE}:TicketsOfAny", "whatever": 1})
    assert isinstance(of_any, TicketsOfAny)
    assert of_any.fields == {"whatever": 1}


def test_entry_point_is_a_kind(points: list[EntryPoint]) -> None:
    """A package's source has a short name, and is made as one of this package."""
    points.append(EntryPoint("tickets", f"{HERE}:Tickets", "ladon_storage.sources"))
    points.append(EntryPoint("tickets", f"{HERE}:Tickets", "ladon_storage.sources"))
    assert source_from({"kind": "tickets", "source_id": "a", "project": "p"}) == Tickets(
        source_id="a", project="p"
    )
    with pytest.raises(ConfigurationError, match="did you mean 'tickets'"):
        source_from({"kind": "ticket"})


def test_entry_point_replaces_no_source_of_this_package(points: list[EntryPoint]) -> None:
    """An installed package cannot become what `kev` means."""
    points.append(EntryPoint("kev", f"{HERE}:TicketsPlain", "ladon_storage.sources"))
    assert type(source_from({"kind": "kev"})).__name__ == "Kev"


def test_entry_point_of_two_packages_is_no_choice(points: list[EntryPoint]) -> None:
    """Which of two is meant is not left to the order of installation."""
    points.append(EntryPoint("tickets", f"{HERE}:Tickets", "ladon_storage.sources"))
    points.append(EntryPoint("tickets", f"{HERE}:TicketsPlain", "ladon_storage.sources"))
    with pytest.raises(ConfigurationError, match="Several installed packages"):
        source_from({"kind": "tickets"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_package.module:Class", "'no_such_package' where this runs. Install it there"),
        (f"{HERE}.deeper:Class", f"there is no module '{HERE}.deeper'"),
        (f"{HERE}:Ticket", "has no class 'Ticket'; did you mean 'Tickets'?"),
        (f"{HERE}:Tickets.Inner", "has no class 'Inner'"),
        (f"{HERE}:NOT_A_CLASS", "is of the type int, not a class"),
        (f"{HERE}:record", "is of the type function, not a class"),
        ("os:system", "not a class"),
        ("subprocess:Popen", "it lacks pages"),
        (f"{HERE}:Dangerous", "it lacks pages"),
        (f"{HERE}:WithoutId", "it lacks source_id"),
        (f"{HERE}:WithCoroutine", "make it an async generator"),
        (f"{HERE}:WithOverlapOfSeconds", "overlap: should be a timedelta"),
        (f"{HERE}:Memory", "it lacks pages"),
        (":Class", "names no class. Write the module, a colon and the class"),
        ("module:", "names no class"),
        ("a:b:c", "names no class"),
        (".relative:Class", "names no class"),
        ("https://example.org", "names no class"),
        ("__main__:", "names no class"),
        ("kve", "did you mean 'kev'?"),
        ("KEV", "did you mean 'kev'?"),
        (7, "kind should be one of"),
        ("", "kind should be one of"),
    ],
)
def test_name_that_is_no_source_is_one_sentence(kind: object, message: str) -> None:
    """Each way in which a name can be wrong says what is, and nothing is made to find out."""
    own_classes.MADE.clear()
    with pytest.raises(ConfigurationError) as caught:
        source_from({"kind": kind})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not own_classes.MADE


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no\\nluck')", "importing it raised RuntimeError: no luck. Correct"),
        ("import no_such_library", "it imports 'no_such_library', which is not installed"),
        ("import sys; sys.exit(3)", "importing it raised SystemExit: 3"),
        ("def broken(:", "importing it raised SyntaxError"),
        ("from os import nothing", "importing it raised ImportError"),
    ],
)
def test_module_that_fails_is_one_sentence(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an import raises is the configuration's error, with the cause behind it."""
    name = f"failing_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        source_from({"kind": f"{name}:Class"})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "Tickets", "source_id": "a", "projet": "p"}, "did you mean 'project'?"),
        ({"kind": "Tickets", "source_id": "a"}, "project: is missing"),
        ({"kind": "Tickets", "source_id": "a", "project": "p", "page_size": "x"}, "page_size: "),
        ({"kind": "TicketsData", "source_id": "a", "projct": "p"}, "did you mean 'project'?"),
        ({"kind": "TicketsData"}, "source_id: is missing"),
        ({"kind": "TicketsData", "source_id": ""}, "source_id should have 1 to 255"),
        ({"kind": "TicketsPlain", "source_id": "a"}, "source_id: There is no such field; there"),
        ({"kind": "TicketsPlain", "project": "broken"}, "ValueError: project is broken"),
    ],
)
def test_wrong_field_of_an_own_class_is_named(fields: dict[str, Any], message: str) -> None:
    """A class of one's own is as strict as one of this package, even one that ignores extras."""
    with pytest.raises(ConfigurationError) as caught:
        source_from({**fields, "kind": f"{HERE}:{fields['kind']}"})
    assert message in str(caught.value)


def test_class_in_place_of_an_object_is_refused() -> None:
    """A class has the attributes of its objects, and is no source."""
    with pytest.raises(ConfigurationError):
        source_from(TicketsPlain)
    with pytest.raises(ConfigurationError):
        sink_from(Memory)


def test_own_sink_is_named_by_its_class(points: list[EntryPoint]) -> None:
    """A sink of one's own has a kind with any fields, or a scheme of its address."""
    named = sink_from({"kind": f"{HERE}:Memory", "name": "m"})
    points.append(EntryPoint("memory", f"{HERE}:Memory", "ladon_storage.sinks"))
    by_scheme = sink_from({"url": "memory://here", "name": "m"})
    by_kind = sink_from({"kind": "memory", "name": "m"})
    for sink in (named, by_scheme, by_kind):
        assert isinstance(sink, Memory)
        assert isinstance(sink, Sink)
    assert isinstance(by_scheme, Memory)
    assert by_scheme.url == "memory://here"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": f"{HERE}:Memory"}, "name: is missing"),
        ({"kind": f"{HERE}:Memory", "nme": "x", "name": "y"}, "did you mean 'name'?"),
        ({"kind": f"{HERE}:Tickets"}, "is no sink: it lacks write, __aenter__ and __aexit__"),
        ({"kind": "os:system"}, "not a class"),
        ({"kind": "sqlite", "url": "sqlite:///x.db"}, "Remove kind"),
        ({"kind": "no.such:Sink"}, "there is no module 'no'"),
        ({"url": "sqlite:///x.db", "kep": "all"}, "did you mean 'keep'?"),
        ({"ulr": "sqlite:///x.db"}, "did you mean 'url'?"),
        ({"url_secret": "a b"}, "should be the name of a Prefect Secret block"),
        ({"url_secret": "0123456789abcdef" * 2}, "looks like the secret itself"),
        ({"url_secret": "NAME", "url": "sqlite:///x.db"}, "url or url_secret, not both"),
        ({"url_secret": "NAME", "kep": "all"}, "did you mean 'keep'?"),
    ],
)
def test_wrong_sink_is_one_sentence(fields: dict[str, Any], message: str) -> None:
    """What is wrong with a named sink is said when it is described, not when it is opened."""
    with pytest.raises(ConfigurationError) as caught:
        sink_from(fields)
    assert message in str(caught.value)
    assert "0123456789abcdef" not in "".join(traceback.format_exception(caught.value))


def test_sources_and_sinks_are_imported_when_they_are_named() -> None:
    """A command that names one source pays for that one: no database library, no other source."""
    code = (
        "import sys\n"
        "from ladon_storage.sinks import sink_from\n"
        "from ladon_storage.sources import source_from\n"
        "source_from({'kind': 'kev'})\n"
        "kinds = {'ladon_storage.sources.' + each for each in ('rest', 'sql', 'misp')}\n"
        "assert not kinds & set(sys.modules), kinds & set(sys.modules)\n"
        "assert 'sqlalchemy' not in sys.modules\n"
        "from ladon_storage.sources import KINDS, AnySource, RestApi\n"
        "assert RestApi in KINDS\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
