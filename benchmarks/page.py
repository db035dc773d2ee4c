"""Write the figures that the scripts kept into README.md, between its marks, and draw the chart.

A part of the page whose script has kept nothing stays as it is, and so do its lines on top: what is
slower than a peer, and what misses its target.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import RESULTS, ratios, shown

README = RESULTS.parent / "README.md"
CHART = RESULTS.parent / "feed.svg"
# The tables of the others have a row for each peer; their targets say what is in them.
WITH_TABLES = (
    "feed",
    "growth",
    "document",
    "nothing_new",
    "startup",
    "ten_million",
    "postgresql_service",
    "many",
)
OURS, SCRIPT, PEER = "#0f766e", "#475569", "#cbd5e1"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ladon",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.bottom": False,
    "axes.edgecolor": "#94a3b8",
}
NOT_IN_CHART = ("ours, SQLite, all",)
PROVISIONAL = (
    "**Provisional: taken at the smallest size, which shows that it runs. Costs that do not depend "
    "on the number of records decide there; these are no figures.**"
)
BEHIND, MISSED = "CPU, ours / the peer's", ["script", "", "target", "measured", "floor"]
"""How the tables on top begin."""
Found = dict[str, Any]


def results(folder: Path = RESULTS) -> dict[str, Found]:
    """Return what each script kept last."""
    kept = sorted(folder.glob("*.json")) if folder.exists() else []
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in kept}


def page(text: str, found: dict[str, Found]) -> str:
    """Return the page with the parts of all scripts that have kept something."""
    parts = {name: "\n\n".join(part(each)) for name, each in found.items()}
    if found:
        parts["slower"] = "\n\n".join(slower(found, _parted(text, "slower")[1]))
    for name, part_of_script in parts.items():
        before, _, after = _parted(text, name)
        text = f"{before}\n{part_of_script}\n\n{after}"
    return text


def _parted(text: str, name: str) -> tuple[str, str, str]:
    """Return what is up to the part of a name, the part, and what is from its end."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, marked, rest = text.partition(begin)
    part_of_script, ended, after = rest.partition(end)
    if not (marked and ended):
        raise SystemExit(f"The page has no part for {name}: write {begin.strip()} and its end.")
    return before + begin, part_of_script, end + after


def part(found: Found) -> Iterator[str]:
    """Yield the paragraphs of one script: where its figures are from, its targets, its tables."""
    yield origin(found)
    if found["verdicts"]:
        yield targets(found["verdicts"])
    if found["script"] in WITH_TABLES:
        for each in found["tables"]:
            yield f"**{each['title']}**\n\n{markdown(each['columns'], each['rows'])}"


def origin(found: Found) -> str:
    """Return the sentence that says where the figures are from."""
    about = found["about"]
    text = (
        f"{about['day']}, commit `{about['commit'] or 'unknown'}`; {about['machine']}; "
        f"{about['versions']}."
    )
    return f"{text} {PROVISIONAL}" if found["quick"] else text


def targets(verdicts: list[Found]) -> str:
    """Return the table of targets, a column for each data set where there are several."""
    data = list(dict.fromkeys(each["of"] for each in verdicts))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for each in verdicts:
        measured = each["measured"] if each["met"] else f"**{each['measured']}**"
        rows.setdefault((each["what"], each["wanted"]), {})[each["of"]] = measured
    columns = ["", "target", *(of or "measured" for of in data)]
    cells = [
        [what, wanted, *(figures.get(of, "") for of in data)]
        for (what, wanted), figures in rows.items()
    ]
    return markdown(columns, cells, texts=2)


def slower(found: dict[str, Found], before: str = "") -> Iterator[str]:
    """Yield what is slower than a peer, and the targets that are missed, beside their floors.

    Args:
        found: What the scripts kept.
        before: The part as it is, of which the lines of all other scripts stay.
    """
    if any(each["quick"] for each in found.values()):
        yield PROVISIONAL
    feed = found.get("feed")
    peers = _table(before, BEHIND) if feed is None else _behind(feed["figures"])
    if len(peers) > 1:
        yield "Slower than a peer; an empty cell is one where it is not."
        yield markdown(peers[0], peers[1:])
    missed = [each for each in _table(before, MISSED[0])[1:] if each[0] not in found]
    missed += [
        [
            script,
            ", ".join(filter(None, (each["what"], each["of"]))),
            each["wanted"],
            each["measured"],
            each.get("floor", ""),  # none where it was kept before there were floors
        ]
        for script, kept in found.items()
        for each in kept["verdicts"]
        if not each["met"]
    ]
    if missed:
        yield "Targets that are missed, and the floors that were measured with them:"
        yield markdown(MISSED, sorted(missed, key=lambda row: row[0]), texts=3)


def _behind(figures: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """Return the table of the peers that are faster than ours, with its heading."""
    behind: dict[str, dict[str, str]] = {}
    for feed, taken in figures.items():
        for who in (each for each in taken if each.startswith("ours")):
            for peer in (each for each in taken if not each.startswith("ours")):
                beside = ratios(taken[who], taken[peer])
                if median(beside) > 1:
                    behind.setdefault(f"{who} / {peer}", {})[feed] = shown(beside, 2)
    rows = [[who, *(each.get(feed, "") for feed in figures)] for who, each in behind.items()]
    return [[BEHIND, *figures], *rows]


def _table(text: str, first: str) -> list[list[str]]:
    """Return the cells of the table whose heading begins like this, without the line below it."""
    for paragraph in text.split("\n\n"):
        if paragraph.strip().startswith(f"| {first} |"):
            rows = [line[2:-2].split(" | ") for line in paragraph.strip().splitlines()]
            return [rows[0], *rows[2:]]
    return []


def markdown(columns: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """Return a table whose first columns are texts, and whose others are numbers."""
    line = ["---" if number < texts else "---:" for number in range(len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, line, *rows))


def draw(found: Found, path: Path = CHART) -> None:
    """Draw the CPU time of a record for each feed and contender."""
    # By name: only `make bench` installs it, and what checks types does without.
    mpl: Any = import_module("matplotlib")
    mpl.use("svg")
    plt: Any = import_module("matplotlib.pyplot")

    mpl.rcParams.update(STYLE)
    taken: dict[str, dict[str, list[float]]] = found["figures"]
    names = [who for who in next(iter(taken.values())) if who not in NOT_IN_CHART]
    names.sort(key=lambda who: (not who.startswith("ours"), who != "script"))
    height = 0.9 + 0.27 * len(names)
    figure, panels = plt.subplots(1, len(taken), figsize=(10, height), sharey=True)
    for panel, (feed, of_feed) in zip(panels, taken.items(), strict=True):
        middles = [median(of_feed[who]) for who in names]
        spread = [
            [middle - min(of_feed[who]) for who, middle in zip(names, middles, strict=True)],
            [max(of_feed[who]) - middle for who, middle in zip(names, middles, strict=True)],
        ]
        colours = [
            OURS if who.startswith("ours") else SCRIPT if who.endswith("script") else PEER
            for who in names
        ]
        panel.barh(names, middles, color=colours, xerr=spread, ecolor="#64748b", height=0.72)
        for number, (who, middle) in enumerate(zip(names, middles, strict=True)):
            end = max(of_feed[who]) + max(middles) * 0.02
            panel.text(end, number, f"{middle:,.0f}", va="center", color="#334155")
        panel.set_title(feed, loc="left", fontsize=10, color="#0f172a")
        panel.set_xlim(0, max(max(of_feed[who]) for who in names) * 1.18)
        panel.set_xticks([])
        panel.tick_params(axis="y", length=0, labelcolor="#0f172a")
    panels[0].invert_yaxis()
    mark = " (provisional: smallest size, no figures)" if found["quick"] else ""
    figure.suptitle(
        f"CPU time of a record from HTTP until it is durable, µs: less is better{mark}",
        x=0.008, ha="left", fontsize=11, fontweight="bold", color="#0f172a",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Write the page and the chart."""
    found = results()
    README.write_text(page(README.read_text(encoding="utf-8"), found), encoding="utf-8")
    if "feed" in found:
        draw(found["feed"])
    print(f"{README.name} has the figures of {', '.join(found) or 'nothing'}")


if __name__ == "__main__":
    main()
