"""The collection's benchmark runs, and does not take a loss for a figure."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import collected, collection

ROOT = Path(__file__).resolve().parent.parent.parent
FIGURE = re.compile(r"[\d,.]+ \([\d,.]+–[\d,.]+\)")

pytest.importorskip("deltalake")


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the benchmarks, whether it succeeds or not."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def check_figures(output: str, errors: str) -> None:
    """Check that ours has its figures of each kind, and dlt its own or a word that it lacks."""
    lines = [line for line in output.splitlines() if FIGURE.search(line) and "│" in line]
    found = [line.strip("│").split("│")[0].strip() for line in lines]
    for name in collection.OURS:
        assert found.count(collection.SHOWN[name]) == 4
        assert found.count(collection.SHOWN[collection.FLOORS[name]]) == 2
    if importlib.util.find_spec("dlt"):
        assert found.count(collection.SHOWN["dlt append"]) == 2
        assert "memory: " in output
    else:
        assert "dlt is not installed" in errors


@pytest.mark.slow
def test_collection_is_measured_beside_dlt_where_it_is_there() -> None:
    """Ours has its figures of each kind; dlt has those of new records, or is said to be missing."""
    done = ran("benchmarks.collection", "--quick")
    assert done.returncode == 0, done.stderr
    check_figures(done.stdout, done.stderr)


async def test_each_collection_that_was_measured_has_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables are those of real processes, whose outcome is given here."""
    asked: list[tuple[str, str]] = []

    async def outcome(
        _folder: Path, _module: str, who: str, what: str, *_arguments: str, **_variables: str
    ) -> dict[str, float]:
        asked.append((who, what))
        return {"seconds": 0.5, "cpu": 0.25, "mebibytes": 2.0}

    monkeypatch.setattr(collection, "outcome", outcome)
    await collection.main(quick=True)
    check_figures(*capsys.readouterr())
    assert {who for who, what in asked if what == "nothing new"} == set(collection.OURS)


@pytest.mark.parametrize(
    "who",
    [
        *("sqlite", "duckdb", "delta", "floor sqlite", "floor duckdb", "floor delta"),
        *("dlt append", "dlt merge"),
    ],
)
def test_collection_that_lost_records_has_no_figure(who: str, tmp_path: Path) -> None:
    """A contender is asked how many rows it has before its time counts."""
    if who.startswith("dlt"):
        pytest.importorskip("dlt", reason="only `make bench` installs dlt")
    script = (
        "import sys; from benchmarks import collected; real = collected.pages_of\n"
        f"sys.argv[1:] = [{who!r}, 'collect', {str(tmp_path)!r}, '2000']\n"
        "collected.pages_of = lambda records: list(real(records))[:1]\n"
        "collected.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={"HOME": str(tmp_path), "DLT_DATA_DIR": str(tmp_path), **collection.QUIET},
    )
    assert done.returncode == 1
    assert f"{who} has 1000 rows of 2000" in done.stderr
    assert not done.stdout


def test_records_have_six_fields_and_their_own_ids() -> None:
    """What is collected is the same for all, in order, and no two records share an id."""
    pages = list(collected.pages_of(2_500))
    assert [len(page) for page in pages] == [1_000, 1_000, 500]
    items = [item for page in pages for item in page]
    assert {len(item) for item in items} == {6}
    assert len({item["id"] for item in items}) == 2_500
    assert [item["seen"] for item in items] == sorted(item["seen"] for item in items)
    assert json.loads(json.dumps(items)) == items
