"""Feeds whose texts attack the readers of a run: terminals, logs and pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ladon_storage.testing.feed_server import Answer, Asked

EVIL = (
    "x\x1b[31mred\x1b]0;title\x07\r\nFORGED 2026-01-01 INFO all is well\u2028FORGED\x85FORGED "
    "\u202egnp.exe\u2066\u200b\x9b31m [link=http://evil.example]a[/link][red]b[/red] "
    "![i](http://evil.example/x.png) [a](http://evil.example) <b>|`"
)
"""Sequences of terminals, false lines of a log, bidirectional overrides, and three markups."""

REST: dict[str, Any] = {
    "kind": "rest",
    "records": "items",
    "id": "id",
    "timestamps": ["at"],
    "full_snapshot": True,
}


def _items(*items: object, **more: object) -> Answer:
    return Answer.of({"items": items, **more})


def _item(number: object = 1, at: object = "2024-01-01T00:00:00Z", **more: object) -> object:
    return {"id": number, "at": at, **more}


def _always(answer: Answer) -> Callable[[Asked], Answer]:
    return lambda _: answer


def _text(status: int, content_type: str = "text/plain") -> Answer:
    return Answer(EVIL.encode(), status=status, headers={"Content-Type": content_type})


def _problem(status: int, **fields: object) -> Answer:
    return Answer(json.dumps(fields).encode(), status, {"Content-Type": "application/json"})


def _paged(kind: str, **settings: object) -> dict[str, Any]:
    return {**REST, "paging": {"kind": kind, **settings}}


FEEDS: dict[str, tuple[dict[str, Any], Callable[[Asked], Answer]]] = {
    "error text": (REST, _always(_text(403))),
    "error message": (REST, _always(_problem(400, message=EVIL, error={"detail": EVIL}))),
    "problem details": (REST, _always(_problem(422, title=EVIL, detail=EVIL, errors=[EVIL]))),
    "no JSON": (REST, _always(_text(200))),
    "other status field": (
        {**REST, "expected_values": {"state": ["ok"]}},
        _always(_items(_item(), state=EVIL)),
    ),
    "message beside records": (REST, _always(_items(error=EVIL, message=EVIL))),
    "ids": (REST, _always(_items(_item(EVIL), _item(f"{EVIL}2", title=EVIL)))),
    "timestamps": (REST, _always(_items(_item(1), _item(2), _item(3, EVIL)))),
    "only unusable": (REST, _always(_items(*(_item(number, EVIL) for number in range(200))))),
    "no list": (REST, _always(Answer.of({"items": EVIL}))),
    "other keys": (REST, _always(Answer.of({EVIL: []}))),
    "keys twice": (
        REST,
        _always(
            Answer(b'{"items": [{"id": 1, %s: 1, %s: 2}]}' % ((json.dumps(EVIL).encode(),) * 2))
        ),
    ),
    "next link": (
        _paged("next", path="next"),
        _always(_items(_item(), next=f"http://other.example/{EVIL}")),
    ),
    "next link of another scheme": (
        _paged("next", path="next"),
        _always(_items(_item(), next=f"{EVIL}://x")),
    ),
    "cursor": (
        _paged("cursor", path="next", parameter="cursor"),
        _always(_items(_item(), next=EVIL)),
    ),
    "total": (
        _paged("offset", parameter="skip", total="total"),
        _always(_items(_item(), total=EVIL)),
    ),
    "two contents of an id": (
        REST,
        _always(_items(_item(EVIL, title="a"), _item(EVIL, title="b"))),
    ),
    "catalogue": (
        {"kind": "kev"},
        _always(Answer.of({"count": 2, "vulnerabilities": [{"cveID": EVIL, "dateAdded": EVIL}]})),
    ),
    "TAXII": (
        {"kind": "taxii"},
        _always(_problem(404, title=EVIL, description=EVIL)),
    ),
}
"""Each attack: the fields of its source, and the feed's answers."""


def attacks(text: str) -> list[str]:
    """Return what of a printed text would be obeyed, or would be taken for another line.

    A printed text has lines, and the colours and links of rich where it is on a terminal.
    """
    found = [repr(each) for each in text if not each.isprintable() and each != "\n"]
    return found + [line for line in text.split("\n") if line.lstrip().startswith("FORGED")]
