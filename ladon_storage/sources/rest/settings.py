"""The settings of a JSON API, as its form has them, and what they make of a range and an item."""

from __future__ import annotations

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

from ladon_storage.collection.credentials import SecretName
from ladon_storage.collection.durations import Days
from ladon_storage.collection.protocols import utc_now
from ladon_storage.collection.records import Item
from ladon_storage.models import SourceId
from ladon_storage.sources.fields import (
    KEY_TEXT,
    SETTINGS,
    SOURCE_ID_TEXT,
    Connection,
    Overlap,
    Rate,
    connection_field,
    overlap_field,
)
from ladon_storage.sources.http.urls import SourceUrl, secret_in
from ladon_storage.sources.json.items import ItemReader
from ladon_storage.sources.rest.pagination import Location, Pagination, SinglePage
from ladon_storage.sources.timestamps import (
    PER_SECOND,
    ReadableFormat,
    TimestampFormat,
    ZoneName,
    format_timestamp,
    timestamp_parser,
    zone_of,
)

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
                raise ValueError(f"{name} should have printable ASCII characters alone")
            if any(part in str(name).lower() for part in _SECRET_HEADERS):
                raise ValueError(
                    f"{name} would hold a secret; name the secret in key, and {name} in key_header"
                )
    return value


class TimeParameter(BaseModel):
    """The request parameter for the beginning or the end of the requested range."""

    model_config = ConfigDict(**SETTINGS, title="Bound")

    parameter: str = Field(
        min_length=1, title="Parameter", description="What the instant is called; dots lead down."
    )
    location: Location = Field(
        "query", title="Location", description="Whether the instant is in the query or the body."
    )
    format: TimestampFormat = Field(
        "iso",
        title="Format",
        description="iso, date, seconds, milliseconds, microseconds or nanoseconds from 1970 on, "
        "or a pattern such as %Y-%m-%dT%H:%M:%SZ.",
        validation_alias=AliasChoices("format", "form"),
    )
    zone: ZoneName = Field(
        "UTC",
        title="Time zone",
        description="The zone in which the API reads a date, or a pattern that tells no zone. One "
        "that ends in a literal Z is UTC.",
    )


class RestSettings(BaseModel):
    """The settings of a JSON API."""

    model_config = ConfigDict(**SETTINGS, title="JSON API")

    kind: Literal["rest"] = Field("rest", title="Kind", description="The kind of source.")
    source_id: SourceId = Field(title="Source id", description=SOURCE_ID_TEXT)
    url: SourceUrl = Field(title="Address", description="Where the API is. Never with a key in it.")
    method: Literal["GET", "POST"] = Field(
        "GET", title="Method", description="POST sends the body below, and must only ask."
    )
    headers: Annotated[dict[str, str], BeforeValidator(_check_headers)] = Field(
        {}, title="Headers", description="Headers without secrets, sent with each request."
    )
    params: dict[str, str | int] = Field(
        {}, title="Parameters", description="Parameters of the query, without secrets."
    )
    body: Annotated[dict[str, Any], Field(title="JSON")] | None = Field(
        None, title="Body", description="The JSON body of a POST, without secrets."
    )
    key: SecretName | None = Field(None, title="Key name", description=KEY_TEXT)
    key_header: Annotated[str, AfterValidator(_check_header)] = Field(
        "Authorization", title="Key header", description="The header that holds the key."
    )
    auth_prefix: str = Field(
        "", title="Key prefix", description="What stands before the key, such as 'Bearer '."
    )
    key_param: str = Field(
        "",
        title="Key query parameter",
        description="The parameter of the query that holds the key, where no header can.",
    )
    expected_values: dict[str, list[str | int | bool]] = Field(
        {},
        title="Expected values",
        description="Paths in each answer, and which values there mean that it is one.",
    )
    records: str = Field(
        "", title="Records path", description="Where the list is; empty: it is the answer."
    )
    records_keyed_by_id: bool = Field(
        False,
        title="Records keyed by id",
        description="The records are an object whose keys are the ids, not a list.",
    )
    records_optional: bool = Field(
        False,
        title="Records optional",
        description="An answer without the list has no records, unless it says that it failed.",
        validation_alias=AliasChoices("records_optional", "may_lack"),
    )
    id: (
        Annotated[str, Field(title="One field")]
        | Annotated[tuple[str, ...], Field(title="Several fields")]
    ) = Field(
        "id",
        title="Id path",
        description="Where a record has its id, or a list of places where fields are that only "
        "together are one; an empty list: it is the hash of the content. Unused if the records are "
        "keyed by it.",
    )
    timestamps: tuple[str, ...] = Field(
        min_length=1,
        title="Timestamp paths",
        description="Where a record has its times; the latest counts.",
    )
    timestamp_format: (
        Annotated[ReadableFormat, Field(title="One form")]
        | Annotated[tuple[ReadableFormat, ...], Field(min_length=1, title="Several forms")]
    ) = Field(
        "iso",
        title="Timestamp format",
        description="iso: ISO 8601, and whatever else is one instant alone, such as RFC 2822, "
        "Apr 16, 2025 7:00 AM, or a count from 1970 on whose size tells its unit. Or seconds, "
        "milliseconds, microseconds or nanoseconds from 1970 on, or a pattern such as "
        "%d/%m/%Y %H:%M. Several in a list are tried in their order.",
    )
    no_time: tuple[str | int, ...] = Field(
        (),
        title="Values for no time",
        description="Values that mean that there is no time, such as 0 or 1970-01-01T00:00:00Z, "
        "beside the usual ones: null, nothing, None, N/A, -, never, 0000-00-00.",
    )
    unversioned: tuple[str, ...] = Field(
        (),
        title="Unversioned fields",
        description="Paths of fields that make no new version of a record when they alone change, "
        "such as queried_at. The record keeps them as they were when its version was first stored.",
    )
    zone: ZoneName = Field(
        "UTC",
        title="Time zone",
        description="The zone of the records' times that say none, such as UTC.",
    )
    since: TimeParameter | None = Field(
        None, title="Since", description="How the API is told where to begin; empty: not at all."
    )
    until: TimeParameter | None = Field(
        None, title="Until", description="How the API is told where to end; empty: not at all."
    )
    paging: Pagination = Field(
        SinglePage(), title="Paging", description="How one page leads to the next."
    )
    ordered: bool = Field(
        False,
        title="Ordered",
        description="No record is older than one on a page before, so that a run can go on where "
        "it broke off.",
    )
    overlap: Overlap | None = overlap_field(
        timedelta(hours=24), "Empty: each run reads all there is."
    )
    full_snapshot: bool = Field(
        False,
        title="Full snapshot",
        description="A run lists all there is, so that what is missing was removed. Needs an empty "
        "overlap.",
    )
    retention: Annotated[Days, Field(gt=timedelta(0))] | None = Field(
        None,
        title="Retention (days)",
        description="How long the API keeps what it yields; empty: for ever.",
    )
    rate: Rate | None = Field(
        None, title="Rate limit", description="How many requests the API takes; empty: any."
    )

    throttle_statuses: tuple[int, ...] = Field(
        (),
        title="Throttle statuses",
        description="Statuses by which the API says that there were too many requests, beside 429.",
    )
    connection: Connection | None = connection_field()

    @model_validator(mode="after")
    def _check(self) -> Self:
        in_body = [self.since, self.until, self.paging]
        if self.method == "GET" and (
            self.body is not None
            or any(getattr(each, "location", "") == "body" for each in in_body)
        ):
            raise ValueError("a GET has no body; set the method to POST")
        if self.full_snapshot and self.overlap is not None:
            raise ValueError("a full snapshot reads all there is; leave overlap empty")
        for name in ("params", "body"):
            if (found := secret_in("", getattr(self, name))) is not None:
                raise ValueError(
                    f"{name} would hold a secret in {found}; name the secret in key, and {found} "
                    "in key_param"
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
        """Return the parameters of a request for a range."""
        bounds: dict[Location, dict[str, Any]] = {"query": {}, "body": {}}
        if until is None and (start is not None or self.since is None):
            until = utc_now()  # for an API that needs both ends
        for bound, instant, up in ((self.since, start, False), (self.until, until, True)):
            if bound is not None and instant is not None:
                text = format_timestamp(instant, bound.format, zone_of(bound.zone), up=up)
                value = int(text) if bound.format in PER_SECOND else text
                bounds[bound.location][bound.parameter] = value
        return bounds
