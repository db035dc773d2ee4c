"""The settings of an object storage: which there are, and where a secret may be one of them."""

from __future__ import annotations

import sys
import traceback
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ladon_storage import ConfigurationError
from ladon_storage.sinks import DeltaSink, sink_from
from ladon_storage.sinks.delta.object_errors import described, harmless
from ladon_storage.sinks.delta.object_store import Location

LAKE = "s3://bucket/lake"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": {"AWS_ENDPONT_URL": "https://x"}}, "did you mean 'AWS_ENDPOINT_URL'"),
        ({"options": {"GOOGLE_SERVICE_ACCOUNT": "x"}}, "no option 'GOOGLE_SERVICE_ACCOUNT'"),
        ({"options": {"AWS_S3_ALLOW_UNSAFE_RENAME": "true"}}, "no option"),
        ({"options": {"AWS_SECRET_ACCESS_KEY": "HIDDEN"}}, "holds a secret"),
        ({"options": {"AWS_ENDPOINT_URL": "https://me:HIDDEN@x"}}, "holds a secret"),
        ({"options": {"AWS_REGION": ""}}, "text of one line"),
        ({"options": {"AWS_REGION": 7}}, "text of one line"),
        ({"options": {"AWS_REGION": "eu\nHIDDEN"}}, "text of one line"),
        ({"options": "AWS_REGION"}, "should be a mapping"),
        ({"secrets": {"AWS_SECRET_KEY": "lake-key"}}, "did you mean 'AWS_SECRET_ACCESS_KEY'"),
        ({"secrets": {"AWS_SECRET_ACCESS_KEY": "0123456789abcdef" * 2}}, "secret itself"),
        ({"secrets": {"AWS_SECRET_ACCESS_KEY": 7}}, "should be the name of"),
        ({"secrets": ["lake-key"]}, "should be a mapping"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    """With the nearest name, before a run, and without its value."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        sink_from({"url": LAKE, **fields})
    whole = "".join(traceback.format_exception(caught.value))
    assert "HIDDEN" not in whole
    assert "0123456789abcdef" not in whole


@pytest.mark.parametrize(
    "address", ["minio:9000", "ftp://x", "https://", "https://u@x", "http://x?a"]
)
def test_endpoint_that_is_no_address_is_refused(address: str) -> None:
    """The library would end the process by a panic."""
    with pytest.raises(ConfigurationError, match=r"AWS_ENDPOINT_URL should be|holds a secret"):
        sink_from({"url": LAKE, "options": {"AWS_ENDPOINT_URL": address}})


async def test_endpoint_of_the_environment_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the sink is opened, since only then the environment counts."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL should be"):
        await sink_from({"url": LAKE}).__aenter__()


@pytest.mark.parametrize("field", ["options", "secrets"])
@pytest.mark.parametrize("url", ["sqlite:///records.db", "delta:///lake", "jsonl:///lake"])
def test_sink_without_object_storage_has_no_settings(url: str, field: str) -> None:
    """They would be ignored there."""
    with pytest.raises(ConfigurationError, match="Only a sink on an object storage"):
        sink_from({"url": url, field: {"AWS_REGION": "eu-central-1"}})


def test_settings_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the sink nor what it is made of shows them."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    sink = DeltaSink(LAKE, options={"AWS_SECRET_ACCESS_KEY": "HIDDEN"})
    assert "HIDDEN" not in f"{sink!r}{sink._location!r}{sink._location}"
    assert sink._location.storage_options is not None
    assert sink._location.storage_options["AWS_SECRET_ACCESS_KEY"] == "HIDDEN"


def test_switch_of_a_file_is_text_to_the_library() -> None:
    """TOML has truth values, and the library takes texts alone."""
    sink = sink_from({"url": LAKE, "options": {"AWS_ALLOW_HTTP": True}})
    assert isinstance(sink, DeltaSink)
    assert sink._options == {"AWS_ALLOW_HTTP": "true"}


def test_own_class_may_have_fields_of_these_names() -> None:
    """They are its own, and mean what it says."""
    sink = sink_from({"kind": f"{__name__}:Own", "options": [1], "secrets": ["a"]})
    assert isinstance(sink, Own)
    assert (sink.options, sink.secrets) == ([1], ["a"])


class Own:
    """Be a sink with fields of its own."""

    def __init__(self, options: list[int], secrets: list[str]) -> None:
        self.options, self.secrets = options, secrets

    async def __aenter__(self) -> Own:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave nothing."""

    async def write(self, source_id: str, page: Any, **_: object) -> int:
        """Store nothing."""
        return 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<Code>NoSuchBucket</Code>", "its bucket does not exist"),
        ("<Code>SignatureDoesNotMatch</Code>", "does not accept the credentials"),
        ("<Code>ExpiredToken</Code> 403 Forbidden", "session of the credentials has expired"),
        ("PUT http://169.254.169.254/latest/api/token 403 Forbidden", "there are no credentials"),
        ("<Code>AccessDenied</Code>", "does not permit it"),
        ("<Code>PermanentRedirect</Code>", "in another region"),
        ("invalid peer certificate: UnknownIssuer", "certificate of its endpoint"),
        (
            "performing PUT http://x/a in 1s - status code 500 Internal Server Error",
            "by itself",
        ),
        ("performing PUT http://x/lake/a in 1s - status code: 404 Not Found", "no object storage"),
        (
            "performing PUT http://x/a - status: 404 Not Found <Code>NoSuchUpload",
            "NoSuchUpload",
        ),
        ("<Code>RequestTimeTooSkewed</Code> 403 Forbidden", "the clock of this host"),
    ],
)
def test_error_of_a_storage_is_a_fact_and_a_next_step(text: str, said: str) -> None:
    """What the storage's own code says comes before the status that it has in common."""
    fact, step = described(f"Generic S3 error\n  \x1b[31m↳\x1b[0m {text}")
    assert said in fact
    assert step


def test_other_error_is_one_line_without_secrets() -> None:
    """Colours, a signed query, the values of secrets and the library's dump are left out."""
    text = "Generic\n \x1b[31m↳\x1b[0m GET http://x/y?X-Sig=HIDDEN said k3y-HIDDEN"
    assert harmless(f"{text}\n\nDebug source: HIDDEN", ["k3y-HIDDEN"]) == (
        "Generic GET http://x/y?… said …"
    )


_PACKAGE = """
import sys
import types

exceptions = types.ModuleType("obstore.exceptions")
exceptions.AlreadyExistsError = type("AlreadyExistsError", (Exception,), {})
sys.modules["obstore.exceptions"] = exceptions
from obstore import store
from half_made import look
look()
names = set()
"""
_STORE = """
import obstore


class Store:
    def put(self, name, content, **options):
        if name in obstore.names:
            raise obstore.exceptions.AlreadyExistsError
        obstore.names.add(name)

    def delete(self, name):
        pass


def from_url(address, **settings):
    return Store()
"""


def test_library_that_another_thread_imports_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sinks that are opened at once import it at once, and its modules import each other."""
    for name in [each for each in sys.modules if each.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "obstore").mkdir()
    (tmp_path / "obstore" / "__init__.py").write_text(_PACKAGE)
    (tmp_path / "obstore" / "store.py").write_text(_STORE)
    monkeypatch.syspath_prepend(tmp_path)
    place = Location("s3://half-made/lake", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    with ThreadPoolExecutor() as threads:
        checks: list[Future[None]] = []

        def look() -> None:
            checks.append(threads.submit(place.check))
            wait(checks, timeout=0.1)

        half_made = ModuleType("half_made")
        half_made.look = look  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "half_made", half_made)
        import_module("obstore")
        checks[0].result(10)
    for name in [each for each in sys.modules if each.partition(".")[0] == "obstore"]:
        del sys.modules[name]
