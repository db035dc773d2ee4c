"""A MISP feed: a folder of files, which a manifest lists.

- A feed's manifest lists everything: an event that it no longer lists was removed, and a listed
  event that the sink lacks is read, however old. It may list a file that is missing for ever; that
  entry goes into the quarantine, and the rest continues.
- The timestamp of an event is the manifest's: a file that was changed after the manifest was read
  must not move the watermark beyond the others that changed with it.
- A file that is older than the manifest says, as a cache serves it, is not the listed one. It keeps
  its own timestamp, so that the sink still lacks the listed one, and it replaces nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.protocols import KnownContent
from ladon_storage.collection.ranges import TimeRange
from ladon_storage.collection.records import Page, Record, Reject
from ladon_storage.errors import SourceError
from ladon_storage.sources.fields import Connection
from ladon_storage.sources.http.client import OK, Credentials, HttpResponse, SourceHttp, source_http
from ladon_storage.sources.http.urls import redact_url
from ladon_storage.sources.json.documents import beside_keyed, off_loop
from ladon_storage.sources.json.items import value_at
from ladon_storage.sources.problems import published_error
from ladon_storage.sources.rest.failures import failure
from ladon_storage.sources.timestamps import unix_timestamps

PAGE_EVENTS = 10
"""Events of a feed in one page: a single event may have a hundred thousand attributes."""

_LONGEST_RAW = 2**20
"""Bytes that are kept of a file that is no event."""

_REFUSED = (403, 404, 410, 451)
"""Statuses of a missing file; object stores answer 403 to clients that may not list."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_moment = unix_timestamps()

logger = logging.getLogger("ladon_storage.collection")


@dataclass(frozen=True)
class MispFeed:
    """A feed of events in files.

    Args:
        source_id: The source, as errors name it.
        url: The folder of its manifest.
        key: The name of the secret that opens it; ``None``: none is needed.
        connection: Proxy, certificates and timeouts.
    """

    source_id: str
    url: str
    key: SecretName | None
    connection: Connection | None

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None
    ) -> AsyncGenerator[Page, None]:
        """Yield the events that are not ``known`` as listed, or those in a range with an end."""
        keys = None
        if self.key is not None:
            keys = Credentials(
                self.url, {"Authorization": await resolve_secret(self.key, self.source_id)}
            )
        async with source_http(
            self.source_id, credentials=keys, connection=self.connection
        ) as http:
            answer = await http.get(self._file("manifest.json"))
            manifest = (await http.document(answer, "")).items
            size = len(answer.body)
            page, listed = await off_loop(size, self._listed, http, manifest)
            wanted = await _wanted(listed, start, until, known)
            page.listed.extend(sorted(listed.keys() - wanted))
            yield replace(page, total=len(manifest), asked_at=http.asked_at)
            events = sorted((listed[uuid], uuid) for uuid in wanted)
            refused, stale = 0, list[Record]()
            for first in range(0, len(events), PAGE_EVENTS):
                page, old = Page(), list[Record]()
                for moment, uuid in events[first : first + PAGE_EVENTS]:
                    entry = partial(off_loop, size, manifest.__getitem__, uuid)
                    found, status = await self._event(http, uuid, moment, entry)
                    refused += status in _REFUSED
                    if isinstance(found, Reject):
                        page.rejects.append(found)
                    elif found.timestamp < moment:
                        old.append(found)
                    else:
                        page.records.append(found)
                yield page
                if old:
                    yield await _undated(old, known)
                stale += old
            self._warn_of_stale_files(stale, listed)
            if refused and refused == len(events):
                await self._refuse_a_closed_feed(http, listed, wanted)
            yield Page(completeness="whole document")

    def _warn_of_stale_files(self, stale: list[Record], listed: Mapping[str, datetime]) -> None:
        if not stale:
            return
        first = stale[0]
        logger.warning(
            "The feed of source %r at %s has %d files that are older than its manifest "
            "lists them, such as %r of %s instead of %s. Each run requests them until they "
            "are as listed. Check whether a cache is in front of the feed.",
            self.source_id,
            redact_url(self.url),
            len(stale),
            first.record_id,
            first.timestamp.isoformat(),
            listed[first.record_id].isoformat(),
            extra={"source_id": self.source_id},
        )

    async def _refuse_a_closed_feed(
        self, http: SourceHttp, listed: Mapping[str, datetime], wanted: Set[str]
    ) -> None:
        """Raise if even the newest event that was not requested is refused or missing."""
        others = listed.keys() - wanted
        if others:
            newest = max(others, key=lambda uuid: (listed[uuid], uuid))
            answer = await http.get(self._file(f"{newest}.json"), accept=(*OK, *_REFUSED))
            if answer.status not in _REFUSED:
                return
        raise self._error(
            f"lists {len(listed)} events, and every requested file was refused or is missing",
            "check the address and the permissions of the key",
        )

    def _listed(self, http: SourceHttp, manifest: object) -> tuple[Page, dict[str, datetime]]:
        """Return the unusable entries of a manifest, and the timestamp of each listed event."""
        if not isinstance(manifest, dict) or not manifest:
            raise self._error(
                "is not an object of events, or is empty",
                "nothing of it was stored; check what the feed publishes",
            )
        if sign := failure(beside_keyed(manifest), manifest, ""):
            raise self._error(
                f"has {http.quoted(sign[1])} at {sign[0]!r}, next to its events",
                "nothing of it was stored; check what the feed publishes",
            )
        page, listed = Page(), {}
        for uuid, entry in manifest.items():
            try:
                listed[uuid] = _listed_at(uuid, entry)
            except ValueError as error:
                page.rejects.append(Reject.of(error, {uuid: entry}, uuid))
        if not listed:
            raise self._error(
                f"lists no event{http.said(manifest)}",
                "nothing of it was stored; check what the feed publishes",
            )
        return page, listed

    async def _event(
        self, http: SourceHttp, uuid: str, moment: datetime, entry: Callable[[], Awaitable[Any]]
    ) -> tuple[Record | Reject, int]:
        answer = await http.get(self._file(f"{uuid}.json"), accept=(*OK, *_REFUSED))
        if answer.status in _REFUSED:
            reason = f"its file, which the manifest lists, answered {answer.status}"
            return Reject.of(reason, {uuid: await entry()}, uuid), answer.status
        size = len(answer.body)
        return await off_loop(size, _read_event, http, answer, uuid, moment), answer.status

    def _file(self, name: str) -> str:
        return f"{self.url.removesuffix('manifest.json').rstrip('/')}/{name}"

    def _error(self, problem: str, step: str) -> SourceError:
        return published_error("manifest", self.source_id, self.url, problem, step)


async def _wanted(
    listed: Mapping[str, datetime],
    start: datetime | None,
    until: datetime | None,
    known: KnownContent | None,
) -> Set[str]:
    """Return the events to read: those in a range with an end, else those that are not known.

    One that went back to an earlier time is not known.
    """
    if until is None and known is not None:
        return await known.lacking(listed) | await known.ahead(listed)
    asked = TimeRange(start, until)
    return {uuid for uuid, moment in listed.items() if moment in asked}


def _read_event(
    http: SourceHttp, answer: HttpResponse, uuid: str, moment: datetime
) -> Record | Reject:
    try:
        event = http.parsed(answer)
        found = value_at(event, "Event.uuid")
        if isinstance(found, str) and found.lower() == uuid.lower():
            return Record.of(uuid, min(moment, _own_time(event, moment)), event)
        problem = "Event.uuid: is not the one that the manifest lists"
    except (SourceError, ValueError) as error:
        problem = str(error)
    return Reject(problem, answer.body[:_LONGEST_RAW].decode(errors="replace"), uuid)


def _own_time(event: object, listed: datetime) -> datetime:
    try:
        return _moment(value_at(event, "Event.timestamp"))
    except ValueError:
        return listed


async def _undated(old: list[Record], known: KnownContent | None) -> Page:
    """Return the page of events older than listed; they are only named where the sink has newer.

    The page is in no order, and the source has not gone back to them.
    """
    ids = {each.record_id: each.timestamp for each in old}
    lacking = ids.keys() if known is None else await known.lacking(ids)
    return Page(
        [each for each in old if each.record_id in lacking],
        listed=sorted(ids.keys() - lacking),
        undated=True,
    )


def _listed_at(uuid: str, entry: object) -> datetime:
    """Return the timestamp of a listed event.

    Raises:
        ValueError: The manifest does not say, or lists what cannot be the name of a file.
    """
    if not _UUID.fullmatch(uuid):
        raise ValueError("the manifest lists it under a name that is not a UUID")
    try:
        return _moment(value_at(entry, "timestamp"))
    except ValueError as error:
        raise ValueError(f"timestamp: {error}") from None
