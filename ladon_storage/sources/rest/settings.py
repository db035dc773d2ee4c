"""The settings of a JSON API, as its form has them, and what they make of a range and an item."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from yarl import URL

from ladon_storage.collection.credentials import SecretName
from ladon_storage.collection.durations import Days
from ladon_storage.collection.records import Item
from ladon_storage.errors import ConfigurationError
from ladon_storage.sources.fields import (
    KEY_TEXT,
    SETTINGS,
    SOURCE_ID_TEXT,
    Connection,
    Overlap,
    Rate,
    SourceSettings,
    connection_field,
    overlap_field,
)
from ladon_storage.sources.http.urls import SourceUrl, secret_in
from ladon_storage.sources.json.items import ItemReader
from ladon_storage.sources.problems import present
from ladon_storage.sources.rest.body import put_at
from ladon_storage.sources.rest.pagination import Location, Pagination, SinglePage
from ladon_storage.sources.timestamp_patterns import zone_of_clock
from ladon_storage.sources.timestamps import (
    PER_SECOND,
    ReadableFormat,
    TimestampFormat,
    ZoneName,
    format_timestamp,
    timestamp_parser,
    zone_of,
)
from ladon_storage.values import SourceId

_SECRET_HEADERS = ("authorization", "cookie", "key", "token", "secret")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _check_header(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError("should be the name of a header, such as X-Api-Key")
    return name


def _check_headers(value: Any) -> Any:
    if isinstance(value, Mapping):
        for name, text in value.items():
            _check_header(str(name))
            if not (str(text).isascii() and str(text).isprintable()):
                raise ValueError(f"{name} should contain printable ASCII characters only")
            if any(part in str(name).lower() for part in _SECRET_HEADERS):
                raise ValueError(
                    f"{name} would contain a secret; set key to the name of the secret, and "
                    f"key_header to {name}"
                )
    return value


class TimeParameter(BaseModel):
    """The request parameter for the beginning or the end of the requested range."""

    model_config = ConfigDict(**SETTINGS, title="Time parameter")

    parameter: str = Field(
        min_length=1,
        title="Parameter name",
        description="Name of the parameter. In a body, dots separate the levels, and a number is "
        "an index of a list. A key that the body has may contain dots.",
    )
    location: Location = Field(
        "query",
        title="Location",
        description="Part of the request that carries the time: query or body.",
    )
    format: TimestampFormat = Field(
        "iso",
        title="Time format",
        description="iso, date, a Unix time in seconds, milliseconds, microseconds or nanoseconds, "
        "or a pattern such as %Y-%m-%dT%H:%M:%SZ.",
        validation_alias=AliasChoices("format", "form"),
    )
    zone: ZoneName = Field(
        "UTC",
        title="Time zone",
        description="Time zone of a date, or of a pattern without a zone. A pattern that ends in Z "
        "is UTC.",
    )

    @model_validator(mode="after")
    def _check_zone(self) -> Self:
        zone_of_clock(self.format, zone_of(self.zone))
        return self


class RestSettings(SourceSettings):
    """The settings of a JSON API."""

    model_config = ConfigDict(**SETTINGS, title="JSON API")

    kind: Literal["rest"] = Field("rest", title="Kind", description="Kind of source.")
    source_id: SourceId = Field(title="Source id", description=SOURCE_ID_TEXT)
    url: SourceUrl = Field(title="Address", description="URL of the API, without a key.")
    method: Literal["GET", "POST"] = Field(
        "GET",
        title="Method",
        description="GET, or POST with the body below. The request must not change anything.",
    )
    headers: Annotated[dict[str, str], BeforeValidator(_check_headers)] = Field(
        {}, title="Headers", description="Headers of each request, without secrets."
    )
    params: dict[str, str | int] = Field(
        {}, title="Parameters", description="Query parameters of each request, without secrets."
    )
    body: Annotated[dict[str, Any], Field(title="JSON")] | None = Field(
        None, title="Body", description="JSON body of a POST, without secrets."
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    key_header: Annotated[str, AfterValidator(_check_header)] = Field(
        "Authorization", title="Key header", description="Header that carries the key."
    )
    auth_prefix: str = Field(
        "", title="Key prefix", description="Text in front of the key, such as 'Bearer '."
    )
    key_param: str = Field(
        "",
        title="Key query parameter",
        description="Query parameter that carries the key, for APIs that accept no header.",
    )
    expected_values: dict[str, list[str | int | bool]] = Field(
        {},
        title="Expected values",
        description="Paths that each answer must have, and their allowed values. An empty list "
        "allows any value, and none.",
    )
    records: str = Field(
        "",
        title="Records path",
        description="Path of the list of records. If empty, the answer itself is the list.",
    )
    records_keyed_by_id: bool = Field(
        False,
        title="Records keyed by id",
        description="The records are an object whose keys are the ids, instead of a list.",
    )
    records_optional: bool = Field(
        False,
        title="Records optional",
        description="An answer without the list counts as no records, unless it reports an error.",
        validation_alias=AliasChoices("records_optional", "may_lack"),
    )
    id: (
        Annotated[str, Field(title="One field")]
        | Annotated[tuple[str, ...], Field(title="Several fields")]
    ) = Field(
        "id",
        title="Id path",
        description="Path of the id, or several paths that identify a record together. If the list "
        "is empty, the hash of the content is the id. Not used for records keyed by id.",
    )
    timestamps: tuple[str, ...] = Field(
        min_length=1,
        title="Timestamp paths",
        description="Paths of a record's times. The latest one counts.",
    )
    timestamp_format: (
        Annotated[ReadableFormat, Field(title="One format")]
        | Annotated[tuple[ReadableFormat, ...], Field(min_length=1, title="Several formats")]
    ) = Field(
        "iso",
        title="Timestamp format",
        description="iso accepts ISO 8601 and every other unambiguous form, such as RFC 2822, Apr "
        "16, 2025 7:00 AM, or a Unix time of any unit. Otherwise seconds, "
        "milliseconds, microseconds or nanoseconds of Unix time, or a pattern such as "
        "%d/%m/%Y %H:%M. Several formats are tried in order.",
    )
    no_time: tuple[str | int, ...] = Field(
        (),
        title="Values for no time",
        description="Values that look like a time and stand for none, such as "
        "1970-01-01T00:00:00Z or a Unix time of 0, in addition to null, an empty text, marks and "
        "zeros such as - and 0000-00-00, and texts such as None, N/A, never, unknown and "
        "Invalid date.",
    )
    unversioned: tuple[str, ...] = Field(
        (),
        title="Unversioned fields",
        description="Paths of fields whose changes alone make no new version of a record, such as "
        "queried_at. The sink keeps their values from when the version was first "
        "stored.",
    )
    zone: ZoneName = Field(
        "UTC",
        title="Time zone",
        description="Time zone of record times that state none.",
    )
    since: TimeParameter | None = Field(
        None,
        title="Start parameter",
        description="Request parameter that carries the start of the range. If empty, every run "
        "reads from the beginning.",
    )
    until: TimeParameter | None = Field(
        None,
        title="End parameter",
        description="Request parameter that carries the end of the range. If empty, none is sent.",
    )
    paging: Pagination = Field(
        SinglePage(), title="Paging", description="The way from one page to the next."
    )
    ordered: bool = Field(
        False,
        title="Ordered",
        description="Records come in time order: none is older than those on earlier pages. An "
        "interrupted run then resumes where it stopped.",
    )
    overlap: Overlap | None = overlap_field(
        timedelta(hours=24), "If empty, each run reads everything."
    )
    full_snapshot: bool = Field(
        False,
        title="Full snapshot",
        description="Each run lists all records, so a record that is missing was removed. There is "
        "no overlap then.",
    )
    retention: Annotated[Days, Field(gt=timedelta(0))] | None = Field(
        None,
        title="Retention (days)",
        description="Age of the oldest records that the API still returns. If empty, it keeps them "
        "forever.",
    )
    rate: Rate | None = Field(
        None,
        title="Rate limit",
        description="Number of requests that the API accepts. If empty, requests are not limited.",
    )

    throttle_statuses: tuple[int, ...] = Field(
        (),
        title="Throttle statuses",
        description="HTTP statuses for too many requests, in addition to 429.",
    )
    connection: Connection | None = connection_field()

    @model_validator(mode="before")
    @classmethod
    def _leave_the_overlap_empty(cls, given: Any) -> Any:
        # A file of TOML has no null, with which the overlap would be left empty.
        if isinstance(given, Mapping) and given.get("full_snapshot") and "overlap" not in given:
            return {**given, "overlap": None}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        in_body = [self.since, self.until, self.paging]
        if self.method == "GET" and (
            self.body is not None
            or any(getattr(each, "location", "") == "body" for each in in_body)
        ):
            raise ValueError("a GET has no body; set the method to POST")
        if self.full_snapshot and self.overlap is not None:
            raise ValueError("a full snapshot reads everything; leave overlap empty")
        timestamp_parser(self.timestamp_format, zone_of(self.zone))
        body = copy.deepcopy(self.body or {})
        for part in in_body:
            is_there = getattr(part, "location", "") == "body"
            for name in ("parameter", "size_parameter") if is_there else ():
                if path := getattr(part, name, ""):
                    put_at(body, path, 0)
        for name in ("params", "body"):
            if (found := secret_in("", getattr(self, name))) is not None:
                raise ValueError(
                    f"{name} would contain a secret in {found}; set key to the name of the secret, "
                    f"and key_param to {found}"
                )
        return self

    def read(self, items: Any) -> Iterator[Item]:
        """Yield the records and rejects of a page."""
        reader = self.reader()
        return (reader.read_keyed if self.records_keyed_by_id else reader.read)(items)

    def reader(self) -> ItemReader:
        """Return the reader that makes records of the items."""
        return ItemReader(
            None if self.records_keyed_by_id else self.id,
            self.timestamps,
            timestamp_parser(self.timestamp_format, zone_of(self.zone)),
            self.no_time,
            self.unversioned,
        )

    def bounds_of(
        self, start: datetime | None, until: datetime | None
    ) -> dict[Location, dict[str, Any]]:
        """Return the parameters of a request for a range.

        Raises:
            ConfigurationError: Only the address has a start, and the range has an end.
        """
        bounds: dict[Location, dict[str, Any]] = {"query": {}, "body": {}}
        since, has_start = self.since, True
        if since is not None and start is None:
            has_start = since.location == "query" and since.parameter in URL(self.url).query
            if has_start and until is not None:
                raise ConfigurationError(
                    f"The address of source {self.source_id!r} has a time in {since.parameter}, "
                    "at which a range without a start would begin. Set since as well."
                )
        if until is None and self.until is not None and has_start:
            until = present(self.source_id, start)
        for bound, instant, up in ((since, start, False), (self.until, until, True)):
            if bound is not None and instant is not None:
                text = format_timestamp(instant, bound.format, zone_of(bound.zone), up=up)
                value = int(text) if bound.format in PER_SECOND else text
                bounds[bound.location][bound.parameter] = value
        return bounds
