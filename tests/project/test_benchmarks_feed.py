"""The benchmarks of feeds and sinks run, and take no loss for a figure; the page shows them."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks import feed, feeds, measuring, page
from benchmarks.contenders.script import Script
from benchmarks.processes import feeds as served
from benchmarks.processes import outcome

ROOT = Path(__file__).resolve().parent.parent.parent

pytest.importorskip("deltalake")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["feed", "growth", "ten_million", "document", "nothing_new"])
def test_script_runs_at_its_smallest_size(script: str) -> None:
    """Each script ends well, and says of its targets whether they are met."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", "--quick"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "is met" in done.stdout or "NOT MET" in done.stdout
    if script == "feed" and not importlib.util.find_spec("dlt"):
        assert "dlt is not installed" in done.stderr


@pytest.mark.parametrize("name", feeds.FEEDS)
def test_feed_has_the_fields_that_it_says(name: str) -> None:
    """What every contender is given is JSON of the declared shape, with an id of its own."""
    items: list[dict[str, Any]] = json.loads(feeds.page_of(name, 5, 20))
    assert len({item["id"] for item in items}) == 20
    described = feeds.FEEDS[name]
    for item in items:
        assert {"id", described.times[0]} <= item.keys() <= described.fields.keys()


@pytest.mark.parametrize("shape", ["list", "object"])
def test_large_document_is_valid(shape: str) -> None:
    """Both shapes have the same records; the object has them by their ids."""
    document = json.loads(feeds.document_of(shape, 1))
    items = document if shape == "list" else [{"id": key} | each for key, each in document.items()]
    assert {frozenset(item) for item in items} == {frozenset(feeds.FEEDS["six"].fields)}
    assert 6_000 < len(items) < 9_000


async def test_page_links_to_the_next_until_the_last() -> None:
    """A collection of a part of the feed gets its records, and no others."""
    import aiohttp

    async with served() as server, aiohttp.ClientSession() as session:
        url, sizes, ids = f"{server}/six?first=10&count=1500", [], set()
        while url:
            async with session.get(url) as response:
                got = await response.json()
            sizes.append(len(got["data"]))
            ids |= {each["id"] for each in got["data"]}
            url = got["next"]
    assert sizes == [1_000, 500]
    assert len(ids) == 1_500


@pytest.mark.slow
@pytest.mark.parametrize(
    "who", ["script", "hashing script", "ours, SQLite, latest", "ours, Delta, latest"]
)
async def test_collection_that_lost_records_has_no_figure(who: str, tmp_path: Path) -> None:
    """A contender is asked how many records it has before its time counts."""
    async with served() as server:
        arguments = (who, "six", f"{server}/six?count=20", "21", str(tmp_path))
        with pytest.raises(RuntimeError, match=f"{who} has 20 records of 21"):
            await outcome(tmp_path, "contender", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", feeds.FEEDS)
async def test_hashing_script_finds_the_versions_of_ours(name: str, tmp_path: Path) -> None:
    """What is compared does the same: ids, times and payloads, and versions of texts in ASCII."""
    stored = []
    async with served() as server:
        for who in ("hashing script", "ours, SQLite, latest"):
            folder = feed.new_folder(tmp_path / who)
            arguments = (who, name, f"{server}/{name}?count=20", "20", str(folder))
            await outcome(folder, "contender", *arguments)
            with closing(sqlite3.connect(folder / "records.db")) as database:
                rows = database.execute(
                    "SELECT record_id, version, record_timestamp, payload FROM records"
                )
                stored.append(
                    {
                        (record_id, version if payload.isascii() else "", at[:19], payload)
                        for record_id, version, at, payload in rows
                    }
                )
    assert stored[0] == stored[1]
    assert len(stored[0]) == 20


def test_script_stays_short() -> None:
    """The script is one that somebody would write: its class has at most forty lines."""
    source = (ROOT / "benchmarks" / "contenders" / "script.py").read_text()
    code = [line for line in source[source.index("_TABLE") :].splitlines() if line.strip()]
    assert len(code) <= 45
    assert Script.__doc__


def found(script: str, **changes: Any) -> dict[str, Any]:
    """Return what a script kept."""
    about = {"machine": "two cores", "versions": "Python", "day": "2026-01-01", "commit": "abc"}
    parts = {"tables": [], "verdicts": [], "figures": {}, "quick": False, "about": about}
    return {"script": script, **parts, **changes}


def test_page_changes_only_the_parts_that_were_taken() -> None:
    """The figures of a script that did not run stay as they are."""
    text = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("slower", "a", "b"))
    verdict = {"what": "CPU", "of": "", "measured": "2 (1–3)", "wanted": "at most 1", "met": False}
    with_floor = {**verdict, "what": "wall", "floor": "1.5 (1–2)"}
    written = page.page(text, {"a": found("a", verdicts=[verdict, with_floor])})
    assert "2026-01-01, commit `abc`" in written
    assert "| CPU | at most 1 | **2 (1–3)** |" in written
    assert "| a | CPU | at most 1 | 2 (1–3) |  |" in written
    assert "| a | wall | at most 1 | 2 (1–3) | 1.5 (1–2) |" in written
    assert written.endswith("<!-- b -->\nold\n<!-- /b -->\n")


def test_page_says_what_is_slower_than_a_peer() -> None:
    """A peer that is faster is on top, also where the target is met; a slower one is not."""
    figures = {"100 × 6 fields": {"script": [10.0], "ours, SQLite, latest": [12.0], "dlt": [20.0]}}
    text = "\n".join(page.slower({"feed": found("feed", figures=figures)}))
    assert "| ours, SQLite, latest / script | 1.20 (1.20–1.20) |" in text
    assert "dlt" not in text


def test_lines_on_top_stay_where_their_script_kept_nothing() -> None:
    """A part that is taken again removes none but its own."""
    missed = {"what": "CPU", "of": "", "measured": "2 (1–3)", "wanted": "at most 1", "met": False}
    figures = {"six": {"script": [10.0], "ours, SQLite, latest": [12.0]}}
    taken = {
        "feed": found("feed", figures=figures, verdicts=[{**missed, "what": "a feed"}]),
        "many": found("many", verdicts=[missed, {**missed, "floor": "1 (1–1)"}]),
        "client": found("client", verdicts=[missed]),
    }
    empty = "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in ("slower", *taken))
    whole = page.page(empty, taken)
    for name in taken:
        assert page.page(whole, {name: taken[name]}) == whole
    without = page.page(whole, {"many": found("many", verdicts=[{**missed, "met": True}])})
    assert "| many | CPU" not in without
    assert "| client | CPU" in without
    assert "| ours, SQLite, latest / script | 1.20 (1.20–1.20) |" in without


def test_provisional_figures_are_marked() -> None:
    """What was taken at the smallest size cannot be read as a figure."""
    assert "Provisional" in page.origin(found("a", quick=True))
    assert "Provisional" in "".join(page.slower({"a": found("a", quick=True)}))
    assert "Provisional" not in page.origin(found("a"))
    assert not list(page.slower({"a": found("a")}))


def test_page_has_a_part_for_each_script() -> None:
    """The one command finds a place for all that it takes."""
    from benchmarks.__main__ import MINUTES

    text = page.README.read_text()
    for name in (*MINUTES, "slower"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


def test_record_keeps_tables_and_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a script prints is what the page shows."""
    record = measuring.Record()
    monkeypatch.setattr(measuring.tables, "record_of_script", record)
    shows = measuring.table("Title", ("who",), ("seconds",))
    shows.add_row("ours", "1 (1–1)")
    measuring.tables.print(shows)
    measuring.verdict("CPU", [2.0], 1, at_most=True, of="six")
    record.save("made", quick=True, folder=tmp_path)
    capsys.readouterr()
    kept = page.results(tmp_path)["made"]
    assert kept["tables"] == [
        {"title": "Title", "columns": ["who", "seconds"], "rows": [["ours", "1 (1–1)"]]}
    ]
    assert kept["verdicts"][0]["met"] is False
    assert kept["quick"] is True


def test_targets_name_contenders_that_exist() -> None:
    """No target is left out because of a name that is misspelt."""
    from benchmarks.contenders.ours import CONTENDERS, PLACES

    names = {*CONTENDERS, *feed.PEERS, feed.SCRIPT}
    names |= {f"ours, {sink}, latest" for sink in PLACES}
    assert {who for ours, peer, _, _ in feed.TARGETS for who in (ours, peer)} <= names
