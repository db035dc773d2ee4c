"""The step from a first answer to the settings of a `rest` source: found, tried, and left open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from ladon_storage.collection.json_values import Number
from ladon_storage.collection.records import Reject
from ladon_storage.errors import ConfigurationError
from ladon_storage.probing.confirming import Confirmed, confirm
from ladon_storage.probing.ids import find_id
from ladon_storage.probing.ranges import bounds_of
from ladon_storage.probing.records import Candidate, empty_lists, find_records, sampled, spread
from ladon_storage.probing.signs import Evidence, Proposal, without_paging
from ladon_storage.probing.times import Times, find_times, is_of_making
from ladon_storage.sources import RestApi, source_from
from ladon_storage.sources.http.client import HttpResponse, SourceHttp
from ladon_storage.sources.json.items import value_at

_MOST_NAMED = 3

# Values next to the records that mark an answer as valid, and their other valid values.
_EXPECTED: Mapping[str, tuple[object, ...]] = {
    "ok": (True,),
    "success": (True,),
    "query_status": ("ok", "no_results", "no_result"),
    "status": ("ok", "OK", "success", "Success"),
    "stat": ("ok",),
    "timed_out": (False,),
}


@dataclass
class Draft:
    """The draft of a source.

    Args:
        settings: Its settings.
        reasons: The reason for each setting.
        unsure: The questions that stay open.
        problem: The reason why there is no source.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)
    field_doubts: list[str] = field(default_factory=list)
    """The open questions about the id and the times, by the pages so far."""
    problem: str | None = None

    def set(self, name: str, value: object, reason: str = "") -> None:
        """Set a setting, with a reason."""
        self.settings[name] = value
        if reason:
            self.reasons[name] = reason


async def draft_of(
    *,
    name: str,
    url: URL,
    method: str,
    body: dict[str, Any] | None,
    access: Mapping[str, Any],
    headers: Mapping[str, str],
    answer: HttpResponse,
    document: Any,
    http: SourceHttp | None,
) -> Draft:
    """Return the source that an answer suggests; its pagination is tried if there is ``http``."""
    draft = Draft()
    found = find_records(document)
    if (problem := _without_records(document, found)) is not None:
        draft.problem = problem
        return draft
    candidate = found[0]
    _note_others(draft, found)
    draft.settings = {"kind": "rest", "source_id": name, "url": str(url)}
    if method != "GET":
        draft.settings["method"] = method
    if body is not None:
        draft.settings["body"] = body
    draft.settings |= {key: value for key, value in access.items() if value}
    if headers:
        draft.settings["headers"] = dict(headers)
    _set_range(draft, url)
    _set_expected(draft, document, candidate)
    _set_records(draft, candidate)
    items = value_items(document, candidate)
    _set_fields(draft, candidate, candidate.items)
    seen = Evidence(
        url, method, body, answer, document, candidate.path, items, _single_id(draft, candidate)
    )
    confirmed = await confirm(draft.settings, seen, http)
    if http is None and confirmed.proposal is not None:
        confirmed.proposal.paging.pop("keep_host", None)  # a sample may be from anywhere
    _take_paging(draft, candidate, confirmed, is_asked=http is not None)
    _check(draft, [*candidate.items, *_objects(confirmed.items)])
    return draft


def value_items(document: Any, candidate: Candidate) -> Any:
    """Return the records in the form of the source's pages."""
    if candidate.is_keyed:
        return dict(zip(candidate.keys, candidate.items, strict=True))
    return candidate.items


def _without_records(document: object, found: Sequence[Candidate]) -> str | None:
    if value_at(document, "collections.0.can_read") is not None or (
        isinstance(document, dict) and {"title", "versions"} <= {*document}
    ):
        return (
            "The address is one of a TAXII server, not of a collection; give one such as "
            "https://taxii.example.org/api1/collections/91a7b528-80eb-42ed-a74d-c6fbd5a26116/."
        )
    if found and (places := spread(found)):
        some = ", ".join(repr(place) for place in places[:_MOST_NAMED])
        return (
            f"The records are in {len(places)} lists, such as {some}, and a rest source reads "
            "one; ask for another view of them, or write a source of your own."
        )
    if found:
        if found[0].has_time:
            return None
        names = ", ".join(sorted({key for item in found[0].items[:20] for key in item})[:12])
        return (
            f"The records at {found[0].path or 'the top'!r} have no time in any field, and a rest "
            f"source needs one; the fields are {names}. Write a source of your own, or ask for "
            "another view of the records."
        )
    if isinstance(document, list) and document and not isinstance(document[0], dict):
        return (
            f"The answer is a list of {type(document[0]).__name__} values, not of objects; see "
            "whether the API has the records themselves."
        )
    if lists := empty_lists(document):
        some = ", ".join(repr(path or "the top") for path in lists[:_MOST_NAMED])
        return (
            f"The list at {some} is empty, so that nothing is known of its records; ask for a "
            "range that has some, or give a sample."
        )
    if isinstance(document, dict) and isinstance(
        document.get("error") or document.get("errors"), str | dict | list
    ):
        return (
            "The answer says that it is an error, with a status of success; see what it requires."
        )
    return (
        "The answer has no list of records, nor an object of them; give the address of a list of "
        "the API."
    )


def _note_others(draft: Draft, found: Sequence[Candidate]) -> None:
    best = found[0]
    others = [
        each
        for each in found[1:]
        if (each.has_time or each.count > best.count) and not _is_within(each, best)
    ]
    if others:
        named = ", ".join(
            f"{each.path or 'the top'} ({each.count})" for each in others[:_MOST_NAMED]
        )
        draft.unsure.append(
            f"whether the records are at {best.path or 'the top'} ({best.count}), or at {named}"
        )


def _is_within(one: Candidate, other: Candidate) -> bool:
    """Return whether a path is inside of the records at another path."""
    return other.is_keyed and (not other.path or one.path.startswith(f"{other.path}."))


def _set_range(draft: Draft, url: URL) -> None:
    bounds, kept = bounds_of(url)
    for name, bound in bounds.items():
        draft.set(name, bound, f"the address has a time in {bound['parameter']}")
    if "since" in bounds:
        # It stays in the address too, where a run without a start has it: an API that was asked
        # without it might refuse, or answer its last days alone.
        draft.unsure.append(
            f"whether the API has more before the time of {bounds['since']['parameter']} in the "
            "address, where the first run begins"
        )
    if kept:
        draft.unsure.append(
            f"whether {kept} in the address begins the range: it is always the same"
        )
    elif "since" not in bounds:
        draft.unsure.append(
            "whether the API can be asked from a time on: each run reads all there is; set since "
            "to the parameter, if there is one"
        )


def _set_expected(draft: Draft, document: Any, candidate: Candidate) -> None:
    if not isinstance(document, dict) or (candidate.is_keyed and not candidate.path):
        return
    expected = {}
    for name, values in _EXPECTED.items():
        if name in document and any(
            type(each) is type(document[name]) and each == document[name] for each in values
        ):
            expected[name] = list(values) if name == "query_status" else [document[name]]
    if expected:
        names = ", ".join(expected)
        draft.set("expected_values", expected, f"the answer says by {names} that it is right")
    if "query_status" in expected:
        draft.set("records_optional", True, "an answer without results has no list")


def _set_records(draft: Draft, candidate: Candidate) -> None:
    if candidate.path:
        draft.set("records", candidate.path, f"a list of {candidate.count} objects with times")
    if candidate.is_keyed:
        reason = f"an object of {candidate.count} records by their ids"
        draft.reasons.pop("records", None)
        draft.set("records_keyed_by_id", True, reason)
        if candidate.count == 1:
            draft.unsure.append("whether the key of the only record is its id")


def _set_fields(draft: Draft, candidate: Candidate, items: Sequence[dict[str, Any]]) -> None:
    """Set the id and the times, from all records so far."""
    times = find_times(sampled(items))
    if lacking := [item for item in items if times.of(item) is None]:
        times = find_times([*sampled(items), *sampled(lacking)])
    draft.field_doubts = list(times.doubts)
    if not candidate.is_keyed:
        found = find_id(items, times)
        draft.set("id", found.setting, found.reason)
        draft.field_doubts += found.doubts
    since = draft.settings.get("since", {}).get("parameter", "")
    if times.change and is_of_making(since):
        draft.field_doubts.append(
            f"whether {since} also finds a record whose {times.paths[0]} changed: if it goes by "
            f"the time at which records are made, set since to a parameter of {times.paths[0]}"
        )
    draft.set("timestamps", list(times.paths), times.reason)
    if times.forms != ("iso",):
        forms = times.forms[0] if len(times.forms) == 1 else list(times.forms)
        draft.set("timestamp_format", forms, "so the times are written")
    if times.no_time:
        draft.set("no_time", list(times.no_time), "some records have this in place of a time")


def _single_id(draft: Draft, candidate: Candidate) -> str | None:
    found = draft.settings.get("id")
    return found if isinstance(found, str) and not candidate.is_keyed else None


def _take_paging(
    draft: Draft, candidate: Candidate, confirmed: Confirmed, *, is_asked: bool
) -> None:
    more = _objects(confirmed.items)
    if more:
        _set_fields(draft, candidate, [*candidate.items, *more])
    draft.unsure += confirmed.unsure
    proposal = confirmed.proposal
    if proposal is not None:
        _set_paging(draft, proposal, _how(is_confirmed=confirmed.is_confirmed, is_asked=is_asked))
    elif confirmed.problem is not None:
        draft.problem = confirmed.problem
    if more and proposal is not None:
        draft.unsure.append(_order(draft, candidate.items, more))
    if not is_asked:
        draft.unsure.append("anything about more pages: a sample was read, and nothing was asked")


def _how(*, is_confirmed: bool, is_asked: bool) -> str:
    if is_confirmed:
        return "and the next page came by it"
    return "not tried: there is one page" if is_asked else "not tried: nothing was asked"


def _set_paging(draft: Draft, proposal: Proposal, how: str) -> None:
    draft.settings = without_paging(draft.settings, proposal)
    draft.set("paging", proposal.paging, f"{proposal.reason}, {how}")


def _order(draft: Draft, first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> str:
    times = Times(tuple(draft.settings["timestamps"]), _forms(draft.settings))
    one, two = (
        [instant for item in items if (instant := times.of(item)) is not None]
        for items in (first, second)
    )
    if one and two and max(one) <= min(two) and min(one) < max(two):
        return (
            "whether the API guarantees the order: these pages rise in time; if it does, set "
            "ordered to true"
        )
    if one and two and min(one) >= max(two) and max(one) > min(two):
        return "whether the API can sort by rising time: these pages come newest first"
    return "the order: these pages are in none, by their times"


def _forms(settings: Mapping[str, Any]) -> tuple[str, ...]:
    forms = settings.get("timestamp_format", "iso")
    return (forms,) if isinstance(forms, str) else tuple(forms)


def _objects(items: Any) -> list[dict[str, Any]]:
    values = items.values() if isinstance(items, Mapping) else items or ()
    alone = (each[0] if isinstance(each, list) and len(each) == 1 else each for each in values)
    return [each for each in alone if isinstance(each, dict)]


def _check(draft: Draft, items: Sequence[dict[str, Any]]) -> None:
    """Refuse an invalid source, or one whose records are unusable."""
    draft.settings = _ordered(_plain(draft.settings))
    draft.unsure = list(dict.fromkeys([*draft.field_doubts, *draft.unsure]))
    if draft.problem is not None:
        return
    try:
        source = source_from(draft.settings)
    except ConfigurationError as error:
        draft.problem = f"The settings that were found make no source: {error}"
        return
    if not isinstance(source, RestApi):
        raise TypeError("a draft is a rest source")
    keyed = {str(index): item for index, item in enumerate(items)}
    rejects = [
        each
        for each in source.read(keyed if source.records_keyed_by_id else items)
        if isinstance(each, Reject)
    ]
    if len(rejects) == len(items):
        draft.problem = f"No record could be used: {rejects[0].reason}."
    elif rejects:
        draft.unsure.append(
            f"{len(rejects)} of {len(items)} records: they would be rejected, {rejects[0].reason}"
        )


def _plain(value: Any) -> Any:
    """Return settings in TOML's form, without nulls."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Number):
        return int(value.text) if value.is_whole else float(value.text)
    return value


def _ordered(settings: dict[str, Any]) -> dict[str, Any]:
    order = [name for name in RestApi.model_fields if name in settings]
    return {name: settings[name] for name in order}
