"""The search for the id of records: one field, or several together.

- An id is in every record, and no two different records share it. Versions of one record share it,
  and differ in a time that changes with the record; those that share the id of something else
  differ in the times at which they happened.
- That records which share an id are versions is an open question at best. They are kept apart by
  the field in which the id counts, where there is one.
- A name weighs more than uniqueness: a title may be unique by chance, and may change.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from ladon_storage.collection.json_values import Number, canonical_text
from ladon_storage.probing.leaves import distance, paths_of, wrapper_of
from ladon_storage.probing.times import Times
from ladon_storage.sources.json.items import value_at

# Names of fields in lower case without separators, and their ranks as an id.
_NAMES: tuple[tuple[str, int], ...] = (
    (r"(parent|user|owner|account|author|creator|category|type|group|team|org|tenant|project|"
     r"assignee|customer|session|parentuuid|status|thread|application|app|client|request|trace)"
     r"(u?u?id|guid|s?id)", 20),
    (r"id", 100),
    (r"_id|uuid|guid", 95),
    (r"uid|objectid|recordid|itemid|eventid|nodeid|rowid|pk|unique(id|identifier|qualifier|key)",
     90),
    (r".*(uuid|guid)", 85),
    (r".*id", 80),
    (r"sha512(hash)?|sha256(hash)?|sha1(hash)?|md5(hash)?|hash|digest|fingerprint|checksum", 60),
    (r".*(key|code|slug|number|accession|iid|ref|reference|identifier|handle)", 52),
    (r"self|href|url|uri|link|permalink|selflink", 50),
    (r"ip|ipaddress|cidr|domain|host|hostname|fqdn|email|indicator|ioc|cve|name|symbol", 30),
    (r"ts", 25),
    # Parts of an id: alone, their values differ by chance.
    (r"prefix|asn|port|protocol|proto|version|country|type|kind|category|source|line|index|seq|"
     r"sequence|rank|order|zone|region|.*source|.*type", 15),
)  # fmt: skip
_TEXTUAL = re.compile(r"title|description|summary|comment|body|text|message|note|content|details")
_SLACK = re.compile(r"1\d{9}\.\d{6}")
_OWN_ID, _CALLED_ID, _LASTING, _ALONE, _PART = 90, 80, 50, 25, 15
"""Ranks from which a field is the record's own id, is called an id, is permanent, is an id alone,
or may be a part. What is only called an id, such as camera_id, may be that of something else."""

_ENOUGH = 10
"""The number of records from which unique values of any field are no coincidence."""

_NOT_ALONE = "no field alone differs in all records"
_LONGEST_ID = 512
_MOST_PARTS = 3
_MOST_COMBINED = 10
_MOST_COMPARED = 5_000


@dataclass(frozen=True)
class Id:
    """The id of records.

    Args:
        paths: Its fields; none: the content itself is the id.
        reason: The reason for these fields.
        doubts: The questions that stay open.
    """

    paths: tuple[str, ...]
    reason: str
    doubts: tuple[str, ...] = ()

    @property
    def setting(self) -> str | list[str]:
        """The setting ``id`` of a source."""
        return self.paths[0] if len(self.paths) == 1 else list(self.paths)

    def of(self, item: object) -> str:
        """Return the id of a record."""
        if not self.paths:
            return _content(item)
        return repr([_text(value_at(item, path)) for path in self.paths])


def find_id(items: Sequence[dict[str, Any]], times: Times) -> Id:
    """Return the fields that identify records.

    >>> items = [{"ip": ip, "port": port} for ip in "ab" for port in (22, 443)]
    >>> find_id(items, Times()).paths
    ('ip', 'port')
    """
    items = items[:_MOST_COMPARED]
    fields = _ranked(items, times)
    doubts: tuple[str, ...] = ()
    if len(items) == 1:
        doubts = ("one record only: nothing shows that ids are unique",)
    alone = (path for path, rank in fields.items() if rank >= _ALONE)
    path = next((each for each in alone if _is_unique(items, (each,))), None)
    # Only a field called an id has versions; two records of one address are two records.
    if path is None or fields[path] < _CALLED_ID:
        found = _of_versions(items, times, fields)
        if found:
            return replace(found, doubts=(*doubts, *found.doubts))
    if path is not None:
        if fields[path] < _LASTING:
            doubts += (f"whether {path} stays the same when a record changes",)
        elif _CALLED_ID <= fields[path] < _OWN_ID and len(items) > 1:
            doubts += (f"whether {path} is unique in all records: it is in these",)
        return Id((path,), f"{path} is in each record, and differs", doubts)
    parts = [path for path, rank in fields.items() if rank >= _PART]
    combined = _combined(items, parts, ()) or _combined(items, parts, times.fields)
    if combined:
        doubt = f"whether {' and '.join(combined)} are unique in all records: they are in these"
        return Id(combined, _NOT_ALONE, (*doubts, doubt))
    for path in fields:
        if len(items) >= _ENOUGH and _is_unique(items, (path,)):
            doubt = f"whether {path} is unique in all records: it is in these"
            return Id((path,), f"{path} differs in these records", (*doubts, doubt))
    doubt = "no fields are an id: the content is, so that a record that changes is another one"
    return Id((), "no field, nor a few together, are an id", (*doubts, doubt))


def _of_versions(
    items: Sequence[dict[str, Any]], times: Times, fields: Mapping[str, int]
) -> Id | None:
    """Return the id that records share as versions do, and the field in which it counts."""
    called = (path for path, rank in fields.items() if rank >= _CALLED_ID and times.change)
    path = next((each for each in called if _is_unique(items, (each,), times)), None)
    if path is None:
        return None
    counts = Counter(_text(value_at(item, path)) for item in items)
    shared = sum(count for count in counts.values() if count > 1)
    doubt = f"whether records that share {path} ({shared} of {len(items)}) are versions of one"
    scopes = (each for each, rank in fields.items() if _PART <= rank < _ALONE)
    for scope in scopes:
        if "version" not in scope.lower() and _is_unique(items, (path, scope)):
            return Id((path, scope), _NOT_ALONE, (f"{doubt}: then {path} alone is the id",))
    return Id((path,), f"{path} is in each record; what shares it differs in its times", (doubt,))


def _ranked(items: Sequence[dict[str, Any]], times: Times) -> dict[str, int]:
    """Return the fields that may be the id, or a part of it, by their rank."""
    wrapper = wrapper_of(items)
    ranked = {}
    for path in paths_of(items[:200]):
        values = [value_at(item, path) for item in items]
        if not all(map(_is_usable, values)):
            continue
        if all(isinstance(each, str) and _SLACK.fullmatch(each) for each in values):
            ranked[path] = _OWN_ID  # the time of a message is its id there
        elif path not in times.fields and (rank := _rank(path, wrapper)) > 0:
            ranked[path] = rank
    return dict(sorted(ranked.items(), key=lambda each: -each[1]))


def _rank(path: str, wrapper: str) -> int:
    last = path.rpartition(".")[2]
    name = re.sub(r"[^a-z0-9]", "", last.lower())
    if last == "_id":
        name = "_id"
    rank = next((rank for pattern, rank in _NAMES if re.fullmatch(pattern, name)), 5)
    if _TEXTUAL.search(name):
        rank = 2
    deep = distance(path, wrapper)
    # Hypermedia APIs keep the id in a link to the record itself.
    if path.endswith(("_links.self.href", "links.self")):
        return 45
    return max(rank - 35 * deep, 1 if deep < 2 else 0)


def _is_usable(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST_ID and value.isprintable()
    if isinstance(value, Number):
        return value.is_whole
    return isinstance(value, int) and not isinstance(value, bool)


def _is_unique(
    items: Sequence[dict[str, Any]],
    paths: tuple[str, ...],
    times: Times | None = None,
) -> bool:
    """Return whether no two records share an id, except equal ones, and versions by ``times``."""
    keys = [tuple(_text(value_at(item, path)) for path in paths) for item in items]
    distinct = len(set(keys))
    if distinct == len(items):
        return True
    # Two versions of a few records are usual; a hundred of each mean that the id is another one.
    if 2 * distinct < len(items):
        return False
    seen: dict[tuple[str, ...], str] = {}
    for key, item in zip(keys, items, strict=True):
        when = "" if times is None else str(times.of(item))
        content = _content(item)
        if seen.setdefault((*key, when), content) != content:
            return False
    return True


def _combined(
    items: Sequence[dict[str, Any]], parts: list[str], instants: Sequence[str]
) -> tuple[str, ...] | None:
    """Return a few parts that together are unique, including one of ``instants`` if any."""
    if len(items) < 2:
        return None
    usable = [path for path in parts if len({_text(value_at(item, path)) for item in items}) > 1][
        :_MOST_COMBINED
    ]
    usable = usable or parts[:1]
    for size in range(1 if instants else 2, _MOST_PARTS + 1 - bool(instants)):
        for paths in combinations(usable, size):
            for instant in instants or ("",):
                chosen = (*paths, instant) if instant else paths
                if _is_in_all(items, chosen) and _is_unique(items, chosen):
                    return chosen
    return None


def _is_in_all(items: Sequence[dict[str, Any]], paths: tuple[str, ...]) -> bool:
    return all(_is_usable(value_at(item, path)) for item in items for path in paths)


def _text(value: object) -> str:
    return value.text if isinstance(value, Number) else str(value)


def _content(item: object) -> str:
    return canonical_text(item).decode(errors="replace")
