"""Draw the Grafana dashboard from what a real Prometheus answers to the queries of its panels.

A service, its runs, a Pushgateway and Prometheus are run for a minute and a half. The places,
titles, queries and units are those of ``monitoring/dashboard.json``; the drawing is this module's,
and no Grafana's.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.sax.saxutils import escape

from ladon_storage.server.serving import serving
from tests.project.prometheus import MONITORING, Prometheus, prometheus, pushgateway
from tests.project.test_dashboard import PICTURE, write_metrics_of_a_run
from tests.service import Caller, calling, path, success

SECONDS = 90
COLUMN, ROW, GAP = 50, 25, 6
COLOURS = ("#2f6fb2", "#c4432b", "#2c8a57", "#a8791a", "#7b4fa3", "#3b8f99", "#99467a", "#5f6b76")
LONGEST = 26

Series = Mapping[str, Any]


class Drawing:
    """An SVG document."""

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._elements: list[str] = []

    def rectangle(self, x: float, y: float, width: float, height: float, style: str) -> None:
        """Draw a rectangle."""
        self._elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {style}/>'
        )

    def text(self, x: float, y: float, text: str, style: str = "") -> None:
        """Write a text."""
        self._elements.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>')

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Draw a line through points."""
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline points="{places}" fill="none" {style}/>')

    def __str__(self) -> str:
        width, height = self._size
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="sans-serif" font-size="11" fill="#24292f">',
            f'<rect width="{width}" height="{height}" fill="#f4f5f7"/>',
            *self._elements,
            "</svg>\n",
        ])  # fmt: skip


def drawn(answers: Sequence[tuple[Mapping[str, Any], list[tuple[str, Series]]]]) -> str:
    """Return the picture of panels, each with its series and their names."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in answers)
    drawing = Drawing(24 * COLUMN + GAP, rows * ROW + GAP)
    for panel, series in answers:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN + GAP, place["y"] * ROW + GAP
        width, height = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        drawing.rectangle(x, y, width, height, 'rx="3" fill="#fff" stroke="#d8dce0"')
        drawing.text(x + 10, y + 19, panel["title"], 'font-weight="bold" font-size="12"')
        box = (x + 10, y + 32, width - 20, height - 42)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        if panel["type"] == "bargauge":
            draw_bars(drawing, box, unit, series)
        elif panel["type"] == "table":
            draw_table(drawing, box, series)
        else:
            draw_lines(drawing, box, unit, series)
    return str(drawing)


Box = tuple[float, float, float, float]


def draw_bars(drawing: Drawing, box: Box, unit: str, series: Sequence[tuple[str, Series]]) -> None:
    """Draw the last value of each series as a bar."""
    x, y, width, height = box
    step = min(22.0, height / max(1, len(series)))
    most = max([float(each["value"][1]) for _, each in series], default=1) or 1
    for number, (name, each) in enumerate(series):
        value, top = float(each["value"][1]), y + number * step
        drawing.text(x, top + step / 2 + 4, name)
        full = width - 150
        drawing.rectangle(x + 110, top + 2, full, step - 6, 'fill="#eceef1"')
        drawing.rectangle(x + 110, top + 2, full * value / most, step - 6, f'fill="{COLOURS[0]}"')
        drawing.text(x + 110 + full + 8, top + step / 2 + 4, shown(value, unit))


def draw_table(drawing: Drawing, box: Box, series: Sequence[tuple[str, Series]]) -> None:
    """Draw the labels of each series as a row."""
    x, y, width, _ = box
    labels = sorted({label for _, each in series for label in each["metric"]})
    for column, label in enumerate(labels):
        left = x + column * width / len(labels)
        drawing.text(left, y + 10, label, 'fill="#656d76"')
        for number, (_, each) in enumerate(series):
            drawing.text(left, y + 30 + 18 * number, each["metric"].get(label, ""))


def draw_lines(drawing: Drawing, box: Box, unit: str, series: Sequence[tuple[str, Series]]) -> None:
    """Draw the values of each series over time, with its name below."""
    x, y, width, height = box
    in_row = max(1, int(width // 150))
    height -= 14 + 15 * -(-len(series) // in_row)
    points = [[(float(at), float(value)) for at, value in each["values"]] for _, each in series]
    values = [value for each in points for _, value in each]
    first, last = (min(p[0][0] for p in points), max(p[-1][0] for p in points))
    least = min(0.0, *values) if values else 0.0
    most = max(values) if values and max(values) > least else least + 1
    left = x + 46

    def place(at: float, value: float) -> tuple[float, float]:
        return (
            left + (at - first) / ((last - first) or 1) * (width - 46),
            y + height - (value - least) / (most - least) * height,
        )

    for share in (0.0, 0.5, 1.0):
        value = least + share * (most - least)
        _, level = place(first, value)
        drawing.line([(left, level), (x + width, level)], 'stroke="#e4e7ea"')
        drawing.text(left - 5, level + 4, shown(value, unit), 'text-anchor="end" font-size="10"')
    drawing.text(left, y + height + 13, f"-{last - first:.0f} s", 'font-size="10"')
    drawing.text(x + width, y + height + 13, "now", 'text-anchor="end" font-size="10"')
    for number, ((name, _), each) in enumerate(zip(series, points, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        drawing.line([place(*point) for point in each], f'stroke="{colour}" stroke-width="1.5"')
        row, column = divmod(number, in_row)
        below, beside = y + height + 28 + 15 * row, x + column * width / in_row
        drawing.rectangle(beside, below - 7, 10, 3, f'fill="{colour}"')
        drawing.text(beside + 14, below, name[:LONGEST], 'font-size="10"')


def shown(value: float, unit: str) -> str:
    """Return a value with its unit, as a panel has it."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s" and value >= 60:
        return f"{value / 60:.3g} min"
    if unit == "s" and 0 < value < 1:
        return f"{1000 * value:.3g} ms"
    ends = {"s": " s", "reqps": " req/s", "cps": "/s"}
    return f"{value:.3g}{ends.get(unit, '')}"


def named(series: Series, legend: str) -> str:
    """Return the name of a series, by the legend of its query."""
    metric = series["metric"]
    return re.sub(r"{{(\w+)}}", lambda found: metric.get(found[1], ""), legend)


async def answered(watching: Prometheus) -> list[tuple[Mapping[str, Any], Any]]:
    """Return each panel with the series that its queries yield."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    answers = []
    for panel in dashboard["panels"]:
        series = []
        for target in panel["targets"]:
            query = target["expr"].replace("$source", ".*").replace("$__rate_interval", "15s")
            found = await (
                watching.series(query) if target.get("instant") else watching.range(query, SECONDS)
            )
            series += [(named(each, target["legendFormat"]), each) for each in found]
        answers.append((panel, series))
    return answers


def bodies(number: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield what runs of the sources write in one step."""
    now = datetime.now(UTC)
    run = str(number)
    feeds = {"kev": 30, "nvd": 400, "threatfox": 120, "urlhaus": 220}
    for place, (source_id, records) in enumerate(feeds.items()):
        due = (number + 2 * place) % 8
        begins: dict[str, object] = {
            "timestamp": now.isoformat(),
            "status": "running",
            "run_id": str(number - due),
        }
        if due == 0:
            yield source_id, begins
        elif due == 1 + place and not (source_id == "urlhaus" and number > SECONDS / 2):
            ledger = {
                "records_delivered": records + number, "records_quarantined": number % 7 * place,
                "gap": None, "lateness_p99_seconds": 40.0 + 6 * place + number % 5,
                "overlap_seconds": 90.0,
            }  # fmt: skip
            yield source_id, success(
                now.isoformat(), run_id=str(number - due), records_collected=records + number,
                ledger=ledger,
            )  # fmt: skip
    if number % 10 == 0:
        yield "otx", {"timestamp": now.isoformat(), "status": "running", "run_id": run}
        yield "otx", {
            "timestamp": now.isoformat(), "status": "failed", "run_id": run,
            "error_message": "no answer",
        }  # fmt: skip


async def collect(call: Caller) -> None:
    """Write for a while as runs do, one write in a while refused."""
    now = datetime.now(UTC)
    await call("PUT", path("misp"), success((now - timedelta(minutes=10)).isoformat()))
    await call("PUT", path("logs"), {
        "timestamp": now.isoformat(), "status": "running", "run_id": "1", "lease_seconds": 1,
    })  # fmt: skip
    ended = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < ended:
        for source_id, body in bodies(number):
            await call("PUT", path(source_id), body)
            await call("GET", path(source_id))
        if number % 15 == 4:
            await call("PUT", path("kev"), success(now.isoformat()), headers={"If-Match": '"1"'})
        number += 1
        await asyncio.sleep(1)


async def main() -> None:
    """Run all of it, and write the picture."""
    hour = timedelta(hours=1)
    limits = {"misp": hour / 10, "kev": hour / 60, "nvd": hour / 60, "urlhaus": hour / 60}
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            serving(folder / "w.db", limits=limits) as address,
            calling(address) as call,
            pushgateway(folder) as gateway,
            prometheus(folder, address.removeprefix("http://"), gateway) as watching,
        ):
            await call("PUT", path("kev"), success(datetime.now(UTC).isoformat()))
            await write_metrics_of_a_run(address, gateway, "kev")
            await collect(call)
            PICTURE.write_text(drawn(await answered(watching)), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
