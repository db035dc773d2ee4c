"""The service's log: each record in its format, with its request, and no forged line."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ladon_storage import (
    StorageResponseError,
    StorageServiceClient,
    WatermarkConflictError,
)
from ladon_storage.errors import escaped
from ladon_storage.server import logs
from ladon_storage.server.logs import JsonLines, TextLines
from tests.service import calling, embedded_service, path, service_process, success

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HEADER = "X-Request-ID"
HOSTILE = "a\x1b[2Jb\r\n2026-01-01 INFO forged \u202e\u2028"


def record(message: str, *arguments: object, error: ValueError | None = None) -> logging.LogRecord:
    caught = None
    try:
        if error is not None:
            raise error
    except ValueError:
        caught = sys.exc_info()
    return logging.LogRecord("ladon", logging.ERROR, "", 1, message, arguments, caught)


def objects(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_text_line_shows_control_characters_and_obeys_none() -> None:
    """A message is one line of printable characters, and says what was in it."""
    line = TextLines().format(record("Source %s", HOSTILE))
    assert line.isprintable()
    assert r"a\x1b[2Jb\r\n2026-01-01 INFO forged \u202e\u2028" in line


def test_traceback_of_a_hostile_text_forges_no_line() -> None:
    """The lines of a traceback are indented, those of an error's own text too."""
    first, *others = TextLines().format(record("It failed", error=ValueError(HOSTILE))).splitlines()
    assert first.endswith("ERROR It failed")
    assert len(others) > 2
    assert all(line.startswith("  ") and line.isprintable() for line in others)


def test_json_line_is_one_ascii_object() -> None:
    """Whatever a message and a traceback hold, a record is one line of JSON in ASCII."""
    line = JsonLines().format(record("Source %s", HOSTILE, error=ValueError(HOSTILE)))
    assert line.isascii()
    assert line.isprintable()
    said = json.loads(line)
    assert said["message"] == f"Source {HOSTILE}"
    assert HOSTILE in said["traceback"]
    assert (said["level"], said["logger"]) == ("ERROR", "ladon")
    assert datetime.fromisoformat(said["time"]).tzinfo is not None


def test_records_of_a_group_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written whole and in order; one that comes later is written at once."""
    written: list[str] = []
    log = io.StringIO()
    log.write = written.append  # type: ignore[method-assign,assignment]
    monkeypatch.setattr(sys, "stderr", log)
    handler = logs._Handler(log)
    handler.setFormatter(logging.Formatter("%(message)s"))
    with logs.in_one_write():
        handler.handle(record("first"))
        handler.handle(record("second"))
        assert written == []
    handler.handle(record("third"))
    assert written == ["first\nsecond\n", "third\n"]


@pytest.mark.parametrize("fault", [OSError, ValueError])
def test_log_that_cannot_be_written_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    """As with each record alone: a full disk below the log fails no write."""

    def write(_: str) -> int:
        raise fault

    log = io.StringIO()
    monkeypatch.setattr(log, "write", write)
    monkeypatch.setattr(sys, "stderr", log)
    with logs.in_one_write():
        logs._Handler(log).handle(record("first"))


def test_process_without_a_log_writes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that began with its standard error closed has none."""
    handler = logs._Handler(io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    with logs.in_one_write():
        handler.handle(record("first"))


@pytest.mark.parametrize("text", ["", "kev", "Ünïcode 漢字", "two words"])
def test_printable_text_is_shown_as_it_is(text: str) -> None:
    """Only what cannot be seen is replaced."""
    assert escaped(text) == text


async def test_lone_surrogate_is_shown() -> None:
    """Half of a pair, which no encoding can write, does not break the log."""
    assert escaped("\udc80") == r"\udc80"


async def test_json_log_names_request_source_and_run(tmp_path: Path) -> None:
    """A change can be found by the id that its client sent, by its source, and by its run."""
    async with (
        service_process(tmp_path / "w.db", "--log-format", "json") as service,
        calling(service.address) as call,
    ):
        answer = await call(
            "PUT", path("kev"), success("2026-01-01", run_id="run-7"), headers={HEADER: "abc-1"}
        )
        assert (answer.status, answer.headers[HEADER]) == (201, "abc-1")
    (change,) = (each for each in objects(service.log) if each.get("request_id") == "abc-1")
    assert (change["source_id"], change["run_id"]) == ("kev", "run-7")
    assert set(change) == {
        *("time", "level", "logger", "message", "request_id", "source_id", "run_id")
    }


async def test_conflicting_write_has_one_id_in_both_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The id with which the client logs a refused write leads to the service's line about it."""
    async with (
        service_process(tmp_path / "w.db", "--log-format", "json") as service,
        StorageServiceClient(service.address) as client,
    ):
        await client.update_watermark("kev", NOON)
        with pytest.raises(WatermarkConflictError):
            await client.update_watermark("kev", NOON - timedelta(days=1))
    (logged,) = caplog.records
    request_id = logged.__dict__["request_id"]
    assert f"request {request_id})" in logged.getMessage()
    (said,) = (each for each in objects(service.log) if each.get("request_id") == request_id)
    assert said["source_id"] == "kev"
    assert said["message"].startswith("PUT refused: Watermark 'kev' is at ")


async def test_failed_write_has_one_id_in_both_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the service carries the id that its client logs."""
    caplog.set_level(logging.INFO)
    lines = TextLines()

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("ladon_storage.server.store.WatermarkDatabase.put", broken)
    seen: list[str] = []

    class Seen(logging.Handler):
        def emit(self, each: logging.LogRecord) -> None:
            seen.append(lines.format(each))  # in the request's context

    handler = Seen()
    logging.getLogger("ladon_storage.server").addHandler(handler)
    try:
        async with (
            embedded_service(tmp_path / "w.db") as address,
            StorageServiceClient(address) as client,
        ):
            with pytest.raises(StorageResponseError, match="answered 500"):
                await client.update_watermark("kev", NOON)
    finally:
        logging.getLogger("ladon_storage.server").removeHandler(handler)
    of_client = [each for each in caplog.records if each.name.startswith("ladon_storage.client")]
    (request_id,) = {each.__dict__["request_id"] for each in of_client}
    assert any(line.splitlines()[0].endswith(f"failed [{request_id}]") for line in seen)


@pytest.mark.parametrize("sent", ["", "a b", "x" * 65, "ä", "a;b", '"}', "../etc", "<b>", "%0a"])
async def test_hostile_request_id_is_replaced(tmp_path: Path, sent: str) -> None:
    """An id that is not plain reaches neither an answer nor the log."""
    async with embedded_service(tmp_path / "w.db") as address, calling(address) as call:
        answer = await call("GET", "/health", headers={HEADER: sent})
    assert answer.status == 200
    assert re.fullmatch("[0-9a-f]{16}", answer.headers[HEADER])


async def test_every_answer_has_the_id_of_its_own_request(tmp_path: Path) -> None:
    """Requests of one connection do not share an id; refusals and unknown routes have one too."""
    async with (
        embedded_service(tmp_path / "w.db", token="secret-token") as address,
        calling(address) as call,
    ):
        for method, target in (
            ("GET", "/health"),
            ("GET", path("kev")),
            ("GET", "/nothing"),
            ("PATCH", "/health"),
        ):
            one = await call(method, target, headers={HEADER: "one"})
            other = await call(method, target)
            assert one.headers[HEADER] == "one"
            assert re.fullmatch("[0-9a-f]{16}", other.headers[HEADER])
