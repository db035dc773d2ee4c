"""The outcome of a run in words, for Prefect's pages, the log and the command line."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from ladon_storage.collection.credentials import holds_secret
from ladon_storage.collection.ledger import Ledger, SinkBehind
from ladon_storage.collection.standby import Holder
from ladon_storage.errors import told
from ladon_storage.models import meant

_REASONS = 3
_LONGEST_ERROR = 300
_LONGEST_LABEL = 100
_USER = re.compile(r"//[^/@\s]*@")
_QUERY = re.compile(r"[?#].*")


def summary(ledger: Ledger) -> str:
    """Return the outcome of a run in one line.

    >>> summary(Ledger(records_new=12, records_known=1200, records_quarantined=2,
    ...     reasons={"at: missing": 2}))
    "12 new, 0 changed, 1,200 known; 2 quarantined: 'at: missing' (2)"
    """
    text = (
        f"{ledger.records_new:,} new, {ledger.records_changed:,} changed, "
        f"{ledger.records_known:,} known"
    )
    if ledger.records_skipped:
        text += f", {ledger.records_skipped:,} skipped"
    if ledger.records_removed:
        text += f", {ledger.records_removed:,} removed at the source"
    if ledger.records_quarantined:
        text += f"; {ledger.records_quarantined:,} quarantined: {most_frequent(ledger.reasons)}"
    if ledger.sink_behind is not None:
        text += f"; {refilled(ledger.sink_behind)}"
    if ledger.gap is not None:
        text += (
            f"; a gap: {instant_text(ledger.gap.start)} to {instant_text(ledger.gap.end)} is lost"
        )
    return text


def refilled(behind: SinkBehind) -> str:
    """Return in words what a sink lacked, and where the run began in its place.

    >>> refilled(SinkBehind(end=datetime(2024, 1, 2, tzinfo=UTC)))
    'the sink had nothing, and the watermark was at 2024-01-02 00:00:00 UTC: it was filled again'
    """
    had = "nothing" if behind.start is None else f"records up to {instant_text(behind.start)}"
    return (
        f"the sink had {had}, and the watermark was at {instant_text(behind.end)}: it was filled "
        "again"
    )


def outcome(ledger: Ledger, skipped: Holder | None = None) -> str:
    """Return the outcome of a run in one line, which may be that it was skipped.

    >>> outcome(Ledger(), Holder(run_id="run-1"))
    "skipped: run 'run-1' is collecting the source"
    """
    return summary(ledger) if skipped is None else f"skipped: {skipped}"


def most_frequent(reasons: Mapping[str, int]) -> str:
    """Return the most frequent reasons of a quarantine in one line."""
    named = [f"{cut(reason)!r} ({count:,})" for reason, count in list(reasons.items())[:_REASONS]]
    more = len(reasons) - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def instant_or_never(watermark: datetime | None) -> str:
    """Return a watermark as text for a reader.

    >>> instant_or_never(None)
    'never collected'
    """
    known = meant(watermark)
    return "never collected" if known is None else instant_text(known)


def instant_text(value: datetime | None) -> str:
    """Return a time to the second in UTC.

    >>> instant_text(datetime(2024, 1, 2, tzinfo=UTC))
    '2024-01-02 00:00:00 UTC'
    """
    return "open" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def one_line(error: BaseException, longest: int = _LONGEST_ERROR) -> str:
    """Return an error as one line: its class and its text.

    A cancellation may carry its cause; the name of its class alone says nothing.
    """
    is_cancellation = isinstance(error, asyncio.CancelledError)
    name = "cancelled" if is_cancellation else type(error).__name__
    text = cut(told(error), longest)
    return cut(f"{name}: {text}", longest) if text else name


def source_label(source_id: str) -> str:
    """Return a source's id as a name that Prefect may show: one line, and without a secret.

    >>> source_label("kev"), source_label("https://me:hunter2@feeds.example.org/a?token=x")
    ('kev', 'https://feeds.example.org/a')
    """
    label = source_id
    if "//" in label and (_USER.search(label) or holds_secret(label)):
        label = _QUERY.sub("", _USER.sub("//", label))
    if holds_secret(label):
        label = label.partition(":")[0]
    return cut(label, _LONGEST_LABEL) or "source"


def cut(text: str, longest: int = _LONGEST_ERROR) -> str:
    r"""Return a text as one line without characters that a terminal or a page would act on.

    >>> cut("red \x1b[31m text")
    'red [31m text'
    """
    visible = "".join(each if each.isprintable() else " " for each in text)
    line = " ".join(visible.split())
    return line if len(line) <= longest else f"{line[:longest]} …"


def code(text: str) -> str:
    """Return a text that may come from a feed as Markdown that shows it, and does nothing else.

    >>> code("![a|b](http://tracker.example/x.png) <b>")
    '`![a/b](http://tracker.example/x.png) <b>`'
    """
    return f"`{cut(text).replace('`', chr(39)).replace('|', '/') or '-'}`"


def span_text(value: timedelta | None) -> str:
    """Return a duration in its two greatest units.

    >>> span_text(timedelta(hours=30)), span_text(timedelta(seconds=90)), span_text(timedelta(0))
    ('1 d 6 h', '1 min 30 s', '0 s')
    """
    left = 0 if value is None else round(value.total_seconds())
    parts = []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        parts += [f"{count} {unit}"] * bool(count)
    return " ".join(parts[:2]) or "0 s"
