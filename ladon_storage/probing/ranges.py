"""The URL parameters that begin or end a range of time, found by their names and values."""

from __future__ import annotations

import re
from typing import Any

from yarl import URL

_SINCE = re.compile(
    r"since|(^|[^a-z])(after|from|start|begin|min|gte?)($|[^a-z])|"
    r"(start|begin|from|since)_?(date|time)|(updated|modified|changed|added)_?(after|from|min)|"
    r"startdate|starttime|mindate|(after|from)date",
    re.IGNORECASE,
)
_UNTIL = re.compile(
    r"until|(^|[^a-z])(before|to|end|max|lte?)($|[^a-z])|(end|to|until)_?(date|time)|"
    r"(updated|modified|changed|added)_?(before|to|max)|enddate|endtime|maxdate",
    re.IGNORECASE,
)

# The form of a value, and the format in which a source writes it.
_FORMS: tuple[tuple[str, str], ...] = (
    (r"\d{4}-\d\d-\d\d", "date"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "%Y-%m-%dT%H:%M:%SZ"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", "%Y-%m-%dT%H:%M:%S+00:00"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", "%Y-%m-%dT%H:%M:%S.000Z"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "iso"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "%Y-%m-%dT%H:%M:%S"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "%Y-%m-%d %H:%M:%S"),
    (r"1[0-9]{9}", "seconds"),
    (r"1[0-9]{12}", "milliseconds"),
)


def form_of(value: str) -> str | None:
    """Return the format of a parameter's value that is a time; ``None``: it is none."""
    return next((form for pattern, form in _FORMS if re.fullmatch(pattern, value)), None)


def bounds_of(url: URL) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the settings ``since`` and ``until``, and a parameter with a time for neither.

    >>> bounds_of(URL("https://example.org/x?modified_since=2024-01-01&q=a"))[0]
    {'since': {'parameter': 'modified_since', 'format': 'date'}}
    """
    bounds: dict[str, dict[str, Any]] = {}
    kept = ""
    for name, value in url.query.items():
        form = form_of(value)
        if form is None:
            continue
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
        end = "since" if _SINCE.search(words) else "until" if _UNTIL.search(words) else ""
        if end and end not in bounds:
            bounds[end] = {"parameter": name, "format": form}
        else:
            kept = name
    if "until" in bounds and "since" not in bounds:
        kept = bounds.pop("until")["parameter"]
    return bounds, kept
