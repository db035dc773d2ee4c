"""The verbs of watermarks, over a file, over a service, and over a service of the base contract."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ladon_storage.client import StorageServiceClient
from ladon_storage.connect import new_client
from ladon_storage.embedded import EmbeddedStorage
from ladon_storage.models import HONEST_SKEW, IMPORTED, Watermark
from ladon_storage.settings import StorageSettings
from tests.base_service import base_service
from tests.cli.called import Command
from tests.raw_server import RawServer, http, watermark
from tests.service import embedded_service

DAY = datetime(2026, 1, 1, tzinfo=UTC)
REASON = ("--reason", "the vendor sent it again")
MISSING, REFUSED, NOT_OFFERED = 3, 4, 5
Client = StorageServiceClient | EmbeddedStorage


@asynccontextmanager
async def stored(ladon: Command, kind: str, name: str = "w") -> AsyncIterator[tuple[str, Client]]:
    """Give the address of a storage of a kind, and a client of it."""
    file = ladon.folder / f"{name}.db"
    serving: Any = nullcontext(f"sqlite:///{file}")
    if kind == "service":
        serving = embedded_service(file)
    elif kind == "base":
        serving = base_service(lambda: datetime.now(UTC))
    async with serving as address:
        client = new_client(StorageSettings(url=address, circuit_url="memory://"))
        assert isinstance(client, StorageServiceClient | EmbeddedStorage)
        async with client:
            await client.get_watermark("unknown")  # shows what the service has
            yield address, client


async def found(client: Client, source_id: str) -> Watermark:
    """Return a watermark that is there."""
    watermark = await client.get_watermark(source_id)
    assert watermark is not None
    return watermark


kinds = pytest.mark.parametrize("kind", ["file", "service"])


@pytest.fixture(autouse=True)
def _own_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_CIRCUIT_URL", "memory://")


@kinds
async def test_list_shows_each_watermark_with_its_state_and_filters(
    ladon: Command, kind: str
) -> None:
    """A list shows every watermark; prefix, status, age and dead runs narrow it down."""
    async with stored(ladon, kind) as (at, client):
        now = datetime.now(UTC)
        await client.update_watermark("a/fresh", now - timedelta(hours=1), records_collected=7)
        await client.update_watermark("a/old", now - timedelta(hours=50))
        await client.update_watermark("b/failed", now, "failed", "no key\x1b[31m for the\nfeed")
        await client.update_watermark("b/dead", now, "running", lease=timedelta(microseconds=1))
        await client.update_watermark("b/alive", now, "running", lease=timedelta(hours=1))

        async def names(*filters: str) -> list[str]:
            called = await ladon.later("watermarks", "list", "--storage", at, *filters, "--json")
            return [each["source_id"] for each in called.json]

        assert await names() == ["a/fresh", "a/old", "b/alive", "b/dead", "b/failed"]
        assert await names("--prefix", "a/") == ["a/fresh", "a/old"]
        assert await names("--status", "failed") == ["b/failed"]
        assert await names("--prefix", "a/", "--older-than", "48") == ["a/old"]
        assert await names("--older-than", "0.5", "--status", "running") == ["b/alive", "b/dead"]
        assert await names("--stale") == ["b/dead"]
        assert await names("--prefix", "b/z") == []
        table = (await ladon.later("watermarks", "list", "--storage", at)).out
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert " held by a dead run " in lines["b/dead"]
    assert " running " in lines["b/alive"]
    assert "never collected" in lines["b/failed"]
    assert len(lines) == 6
    assert "\x1b" not in table


async def test_history_reads_every_page_however_large(ladon: Command) -> None:
    """The history of a source that keeps failing with a long message is all there."""
    async with stored(ladon, "service") as (at, client):
        for _ in range(30):
            await client.update_watermark("kev", DAY, "failed", "\N{SNOWMAN}" * 16_384)
        called = await ladon.later(
            "watermarks", "history", "kev", "--limit", 28, "--storage", at, "--json"
        )
    assert [each["version"] for each in called.json] == list(range(30, 2, -1))


async def test_list_reads_every_page_however_large(ladon: Command) -> None:
    """Long messages and ledgers make pages that no response holds; none is missing for that."""
    text = "\N{SNOWMAN}" * 16_384
    async with stored(ladon, "service") as (at, client):
        for number in range(130):
            error = text if 100 <= number < 125 else "short"
            await client.update_watermark(f"s{number:03}", DAY, "failed", error)
        called = await ladon.later("watermarks", "list", "--storage", at, "--json")
        exported = await ladon.later("watermarks", "export", "--storage", at)
    assert [each["source_id"] for each in called.json] == [f"s{each:03}" for each in range(130)]
    assert len(exported.json["watermarks"]) == 130


@kinds
async def test_watermark_of_an_honest_clock_is_not_set_back(ladon: Command, kind: str) -> None:
    """One that is a little ahead of the service's clock is no mistake to put right."""
    async with stored(ladon, kind) as (at, client):
        await client.update_watermark("kev", datetime.now(UTC) + HONEST_SKEW - timedelta(seconds=1))
        to = ("--storage", at)
        back = await ladon.later("watermarks", "set", "kev", "2026-01-01", *REASON, *to)
    assert back.code == REFUSED
    assert "watermarks reset" in back.sentence


@kinds
async def test_change_is_shown_and_recorded_with_its_reason(ladon: Command, kind: str) -> None:
    """A first watermark, a move forward, a reset and a deletion name both sides and a reason."""
    async with stored(ladon, kind) as (at, client):
        to = ("--storage", at)
        seeded = await ladon.later("watermarks", "set", "kev", "2026-01-01", *REASON, *to)
        moved = await ladon.later("watermarks", "set", "kev", "2026-01-03", *REASON, *to, "--json")
        back = await ladon.later("watermarks", "set", "kev", "2026-01-02", *REASON, *to)
        reset = await ladon.later("watermarks", "reset", "kev", "2026-01-02", *REASON, *to)
        assert (await found(client, "kev")).last_successful_timestamp == DAY + timedelta(1)
        deleted = await ladon.later("watermarks", "delete", "kev", *REASON, *to)
        shown = await ladon.later("watermarks", "show", "kev", *to)
        history = await ladon.later("watermarks", "history", "kev", *to, "--json")
        lines = await ladon.later("watermarks", "history", "kev", *to, "--limit", "2")
    assert [each.code for each in (seeded, moved, reset, deleted)] == [0, 0, 0, 0]
    assert [line.split(maxsplit=1) for line in reset.out.splitlines()] == [
        ["source", "kev"],
        ["before", "2026-01-03 00:00:00 UTC, success"],
        ["after", "2026-01-02 00:00:00 UTC, success"],
        ["reason", REASON[1]],
    ]
    assert "if its sink has nothing of the source" in seeded.err
    assert "leaves out what is after 2026-01-01T00:00:00+00:00" in moved.err
    assert "next run begins" not in reset.err
    assert moved.json["before"]["last_successful_timestamp"] == "2026-01-01T00:00:00+00:00"
    assert moved.json["after"]["last_successful_timestamp"] == "2026-01-03T00:00:00+00:00"
    assert back.code == REFUSED
    assert "watermarks reset" in back.sentence
    assert shown.code == MISSING
    assert [each["action"] for each in history.json] == ["delete", "reset", "reset", "reset"]
    assert {each["reason"] for each in history.json} == {REASON[1]}
    assert all("@" in each["actor"] for each in history.json)
    assert len(lines.out.splitlines()) == 3


@pytest.mark.parametrize("verb", ["set", "reset", "release", "delete"])
def test_change_without_a_reason_is_refused(ladon: Command, verb: str) -> None:
    """No change is made for no reason, and a script is not asked for one."""
    at = ("--storage", "sqlite:///w.db")
    to = ["2026-01-01"] if verb in ("set", "reset") else []
    for reason in ([], ["--reason", "  "], ["--reason", "x" * 1025]):
        called = ladon("watermarks", verb, "kev", *to, *reason, *at)
        assert called.code == 2
        assert "reason" in called.sentence
    assert not (ladon.folder / "w.db").exists()


@kinds
async def test_held_source_is_left_alone_unless_forced(ladon: Command, kind: str) -> None:
    """While a run holds a source, its watermark moves and goes only by force, and the run loses."""
    async with stored(ladon, kind) as (at, client):
        to = ("--storage", at)
        held = await client.update_watermark(
            "kev", DAY, "running", run_id="r1", lease=timedelta(hours=1)
        )
        for verb in (
            ["set", "kev", "2026-01-02"],
            ["reset", "kev", "2026-01-02"],
            ["delete", "kev"],
        ):
            refused = await ladon.later("watermarks", *verb, *REASON, *to)
            assert refused.code == REFUSED
            assert "'r1'" in refused.sentence
        assert await client.get_watermark("kev") == held
        forced = await ladon.later(
            "watermarks", "set", "kev", "2026-01-02", *REASON, *to, "--force"
        )
        assert forced.code == 0
        with pytest.raises(Exception, match="version"):
            await client.update_watermark("kev", DAY, if_match=held.etag, run_id="r1")


@kinds
async def test_release_ends_the_hold_of_a_dead_run(ladon: Command, kind: str) -> None:
    """After it the next run starts at once, and the run that was thought dead cannot write."""
    async with stored(ladon, kind) as (at, client):
        to = ("--storage", at)
        await client.update_watermark("kev", DAY, records_collected=3)
        held = await client.update_watermark(
            "kev", DAY, "running", run_id="r1", lease=timedelta(hours=9)
        )
        released = await ladon.later("watermarks", "release", "kev", *REASON, *to, "--json")
        assert released.code == 0
        after = await found(client, "kev")
        assert after.status == "failed"
        assert after.last_successful_timestamp == DAY
        assert after.error_message is not None
        assert "'r1'" in after.error_message
        assert REASON[1] in after.error_message
        with pytest.raises(Exception, match="version"):
            await client.update_watermark("kev", DAY, if_match=held.etag, run_id="r1")
        again = await ladon.later("watermarks", "release", "kev", *REASON, *to)
        missing = await ladon.later("watermarks", "release", "nvd", *REASON, *to)
    assert (again.code, missing.code) == (REFUSED, MISSING)


async def test_base_contract_offers_what_it_can(ladon: Command) -> None:
    """A service of the base contract shows and sets; what it lacks has an exit code of its own."""
    async with stored(ladon, "base") as (at, client):
        to = ("--storage", at)
        seeded = await ladon.later("watermarks", "set", "kev", "2026-01-01", *REASON, *to)
        back = await ladon.later("watermarks", "set", "kev", "2025-01-01", *REASON, *to)
        shown = await ladon.later("watermarks", "show", "kev", *to, "--json")
        await client.update_watermark("nvd", DAY, "running")
        lacking = [
            await ladon.later("watermarks", *arguments, *to)
            for arguments in (
                ["list"],
                ["export"],
                ["history", "kev"],
                ["reset", "kev", "2025-01-01", *REASON],
                ["delete", "kev", *REASON],
                ["release", "nvd", *REASON],
            )
        ]
        ladon.write("ladon.toml", '[sources.kev]\nkind = "kev"\n[sources.nvd]\nkind = "nvd"\n')
        listed = await ladon.later("watermarks", "list", *to, "--json")
    assert (seeded.code, back.code, shown.code) == (0, REFUSED, 0)
    assert "no place for the reason" in seeded.err
    assert "the next run begins at that position" in seeded.err
    assert shown.json["last_successful_timestamp"] == "2026-01-01T00:00:00+00:00"
    assert [each.code for each in lacking] == [NOT_OFFERED] * 6
    assert [each["source_id"] for each in listed.json] == ["kev", "nvd"]


@pytest.mark.parametrize("headers", [[], ['ETag: "7"']], ids=["base", "with additions"])
async def test_set_that_the_service_ignored_fails(ladon: Command, headers: list[str]) -> None:
    """An answer of 200 with the old date is no success, of a write and of a reset."""
    old = watermark("kev", *headers, last_successful_timestamp="2024-01-01T00:00:00Z")
    async with RawServer(http(200, b'{"status": "healthy"}'), old) as server:
        done = await ladon.later(
            "watermarks", "set", "kev", "2026-01-01", *REASON, "--storage", server.url
        )
    assert (done.code, done.out) == (1, "")
    assert "did not store that" in done.sentence


async def test_release_that_the_service_ignored_fails(ladon: Command) -> None:
    """A source that is still held was not released."""
    held = watermark("kev", 'ETag: "7"', status="running")
    async with RawServer(http(200, b'{"status": "healthy"}'), held) as server:
        done = await ladon.later("watermarks", "release", "kev", *REASON, "--storage", server.url)
    assert (done.code, done.out) == (1, "")
    assert "did not store that" in done.sentence


@kinds
async def test_move_into_the_future_is_said_to_begin_nowhere(ladon: Command, kind: str) -> None:
    """It is stored, since a watermark may be a day ahead, and no run will believe it."""
    async with stored(ladon, kind) as (at, _):
        to = (datetime.now(UTC) + timedelta(hours=9)).isoformat()
        done = await ladon.later("watermarks", "set", "kev", to, *REASON, "--storage", at)
    assert (done.code, "in the future, where no run begins" in done.err) == (0, True)


@pytest.mark.parametrize(("reason", "told"), [([], IMPORTED), (REASON, f"{IMPORTED}: {REASON[1]}")])
async def test_import_is_no_move_by_hand(ladon: Command, reason: list[str], told: str) -> None:
    """With a reason of one's own, too: a new sink is filled from the beginning after it."""
    row = {"source_id": "kev", "status": "failed", "last_successful_timestamp": DAY.isoformat()}
    ladon.write("out.json", json.dumps({"format": 1, "watermarks": [row]}))
    async with stored(ladon, "service") as (to, client):
        await ladon.later("watermarks", "import", "out.json", *reason, "--storage", to)
        history = await client.watermark_history("kev", moved=True)
    assert history is not None
    assert [(each.reason, each.is_by_hand) for each in history.changes] == [(told, False)]


@pytest.mark.parametrize(("origin", "target"), [("file", "service"), ("service", "file")])
async def test_import_moves_all_watermarks_once(ladon: Command, origin: str, target: str) -> None:
    """Timestamps, outcomes and ledgers move; a second import keeps them, and none goes back."""
    async with stored(ladon, origin) as (at, old), stored(ladon, target, "new") as (to, new):
        await old.update_watermark("a", DAY, records_collected=3, ledger={"pages": 2}, run_id="r")
        await old.update_watermark("b", DAY)
        await old.update_watermark("b", DAY, "failed", "no key")
        await old.update_watermark("c", datetime.min.replace(tzinfo=UTC))
        await old.update_watermark("d", DAY, "failed", "never yet")
        await old.update_watermark("e", DAY)
        await new.update_watermark("e", DAY + timedelta(1))
        exported = await ladon.later("watermarks", "export", "--storage", at)
        ladon.write("out.json", exported.out)
        first = await ladon.later("watermarks", "import", "out.json", "--storage", to, "--json")
        second = await ladon.later("watermarks", "import", "out.json", "--storage", to, "--json")
        a, b, c, d = [await found(new, each) for each in "abcd"]
        kept = await found(new, "e")
    changes = {each["source_id"]: each["change"] for each in first.json}
    assert changes == {"a": "create", "b": "create", "c": "create", "d": "create", "e": "failed"}
    assert first.code == second.code == 1
    assert [each["change"] for each in second.json] == ["keep"] * 4 + ["failed"]
    assert (a.last_successful_timestamp, a.records_collected, a.ledger) == (DAY, 3, {"pages": 2})
    assert (b.last_successful_timestamp, b.status, b.error_message) == (DAY, "failed", "no key")
    assert c.found_nothing
    assert (d.last_successful_timestamp, d.error_message) == (None, "never yet")
    assert kept.last_successful_timestamp == DAY + timedelta(1)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 2, "watermarks": []}', '{"format": 1, "watermarks": [{"source_id":',
     '{"format": 1, "watermarks": [{"source_id": ""}]}',
     '{"format": 1, "watermarks": [{"source_id": "a"}, {"source_id": "a"}]}',
     '{"format": 1, "watermarks": [{"source_id": "a", "status": "paused"}]}',
     '{"format": 1, "watermarks": [{"source_id": "b", "status": "failed", "last_run_timestamp": '
     '"2026-01-01T00:00:00Z", "records_collected": -1}]}'],
)  # fmt: skip
def test_import_of_no_export_changes_nothing(ladon: Command, text: str) -> None:
    """A document that was cut, or is another one, is refused before the first write."""
    ladon.write("out.json", text)
    called = ladon("watermarks", "import", "out.json", "--storage", "sqlite:///new.db")
    assert called.code == 2
    assert "export" in called.sentence
    assert not (ladon.folder / "new.db").exists()


@pytest.mark.parametrize("reason", [" ", "x" * 1025])
def test_import_with_a_reason_that_is_none_changes_nothing(ladon: Command, reason: str) -> None:
    """It is checked as that of any other change."""
    ladon.write(
        "out.json", '{"format": 1, "watermarks": [{"source_id": "a", "status": "success"}]}'
    )
    to = ("--storage", "sqlite:///new.db", "--reason", reason)
    called = ladon("watermarks", "import", "out.json", *to)
    assert (called.code, "reason" in called.sentence) == (2, True)
    assert not (ladon.folder / "new.db").exists()


@kinds
async def test_import_that_failed_half_way_says_so_and_is_finished_by_a_repeat(
    ladon: Command, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that fails costs no other, and its outcome is written by the next import only."""
    rows = [
        {"source_id": each, "status": "failed", "error_message": "no key", "records_collected": 7,
         "last_successful_timestamp": DAY.isoformat()}
        for each in ("a", "b")
    ]  # fmt: skip
    ladon.write("out.json", json.dumps({"format": 1, "watermarks": rows}))
    async with stored(ladon, kind) as (to, client):
        owner = type(client)
        put = owner.put_watermark

        async def fail(self: Client, source_id: str, *rest: Any) -> Watermark:
            if source_id == "a":
                raise OSError("cut off")
            return await put(self, source_id, *rest)  # type: ignore[arg-type]

        given = ("watermarks", "import", "out.json", "--storage", to, "--json")
        with monkeypatch.context() as broken:
            broken.setattr(owner, "put_watermark", fail)
            first = await ladon.later(*given)
        half = await found(client, "a")
        second = await ladon.later(*given)
        whole = await found(client, "a")
        await client.update_watermark("a", DAY)
        third = await ladon.later(*given)
        moved_on = await found(client, "a")
    assert (first.code, second.code, third.code) == (1, 0, 0)
    assert [each["change"] for each in first.json] == ["failed", "create"]
    assert "cut off" in first.json[0]["because"]
    assert half.status == "success"
    assert [each["change"] for each in second.json] == ["move", "keep"]
    assert (whole.status, whole.error_message, whole.records_collected) == ("failed", "no key", 7)
    assert [each["change"] for each in third.json] == ["keep", "keep"]
    assert moved_on.status == "success"


@pytest.mark.parametrize("options", [["-"], ["--force", "-"], ["-", "--reason", "moved"]])
def test_hyphen_is_the_export_on_standard_input(
    ladon: Command, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export is piped into an import, wherever the hyphen stands."""
    document = '{"format": 1, "watermarks": [{"source_id": "kev", "status": "success"}]}'
    monkeypatch.setattr("sys.stdin", io.StringIO(document))
    called = ladon("watermarks", "import", *options, "--storage", "sqlite:///new.db", "--json")
    assert [each["source_id"] for each in called.json] == ["kev"]


def test_closed_standard_input_is_one_sentence(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has none where the shell closed it."""
    monkeypatch.setattr("sys.stdin", None)
    called = ladon("watermarks", "import", "-", "--reason", "x", "--storage", "sqlite:///new.db")
    assert called.code == 2
    assert "it cannot be read (standard input is closed)" in called.sentence


@pytest.mark.parametrize("verb", ["list", "export", "show kev", "history kev"])
@pytest.mark.parametrize("given", [(), ("--storage", "sqlite:///ladon.db")])
def test_reading_makes_no_file(ladon: Command, verb: str, given: tuple[str, ...]) -> None:
    """An address with a typing error has no watermarks to show, and no empty export."""
    called = ladon("watermarks", *verb.split(), *given)
    assert (called.code, called.out) == (2, "")
    assert "ladon.db' is not there" in called.err
    assert list(ladon.folder.iterdir()) == []


def test_storage_with_a_password_is_refused(ladon: Command) -> None:
    """Every user of the host sees a command line."""
    called = ladon("watermarks", "list", "--storage", "http://u:hunter2@127.0.0.1:1")
    assert called.code == 2
    assert "hunter2" not in called.sentence


async def test_token_of_a_prefix_lists_its_sources(
    ladon: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is asked for the prefix alone, and so a token that may see no other is enough."""
    file = ladon.folder / "w.db"
    async with EmbeddedStorage(file) as storage:
        for source_id in ("a/1", "a/2", "b/1"):
            await storage.update_watermark(source_id, DAY)
    made = ladon("tokens", "add", "team", "--database", "w.db", "--prefix", "a/")
    monkeypatch.setenv("STORAGE_SERVICE_TOKEN", made.out.strip())
    async with embedded_service(file) as address:
        listing = ("watermarks", "list", "--storage", address, "--json")
        shown = await ladon.later(*listing, "--prefix", "a/")
        assert [each["source_id"] for each in shown.json] == ["a/1", "a/2"]
        refused = await ladon.later(*listing)
        assert refused.code == 1
        assert "'a/'" in refused.err


@kinds
async def test_ledger_is_shown_without_its_histogram(ladon: Command, kind: str) -> None:
    """People read the quantile and the reasons; the counts of the buckets are for programs."""
    ledger = {
        "pages": 2, "reasons": {"no id": 3},
        "lateness": {"counts": [0, 4]}, "lateness_p99_seconds": 90.0,
    }  # fmt: skip
    async with stored(ladon, kind) as (address, client):
        await client.update_watermark("kev", DAY, ledger=ledger)
        shown = await ladon.later("watermarks", "show", "kev", "--storage", address)
    assert "counts" not in shown.out
    for text in ("lateness_p99_seconds", "90.0", "no id"):
        assert text in shown.out
