"""Any JSON API, by configuration alone.

- The answers decide nothing that was not declared: another structure fails the run, and a next page
  on another host is not requested. Answers may contradict a declaration, which fails the run as
  well.
- The API's own filter selects nothing here: a range in days, or an API without a range, is only
  slower.
- An API that needs both ends of a range is asked until now; later records come with the next run.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sized,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import blake2b
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

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.durations import Days
from ladon_storage.collection.protocols import KnownContent, utc_now
from ladon_storage.collection.records import Item, Page, paged
from ladon_storage.errors import SourceError
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
from ladon_storage.sources.http.client import OK, Credentials, HttpResponse, SourceHttp, source_http
from ladon_storage.sources.http.urls import SourceUrl, is_same_host, secret_in
from ladon_storage.sources.json.documents import (
    Document,
    ManyItems,
    ManyKeyed,
    document_digest,
    in_turns,
    is_keyed,
    is_list,
)
from ladon_storage.sources.json.items import ItemReader, value_at
from ladon_storage.sources.rest.failures import failure, other_list
from ladon_storage.sources.rest.fetching import PageFetcher
from ladon_storage.sources.rest.listing import KEY_END
from ladon_storage.sources.rest.page_metadata import names, plain
from ladon_storage.sources.rest.pagination import (
    CursorPagination,
    Location,
    PageRequest,
    PageResponse,
    Pagination,
    SinglePage,
)
from ladon_storage.sources.rest.shared_ids import SharedIds
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

logger = logging.getLogger(__name__)

_LONGEST_PROBLEM = 200
"""Characters that are quoted of an API's error in a successful answer."""

_SECRET_HEADERS = ("authorization", "cookie", "key", "token", "secret")
_AT_A_STRETCH = 5_000
"""Items that are processed before the event loop gets a turn."""

_MOST_KEYS = 100_000
"""Items of a page that are distinguished."""

_AHEAD = timedelta(days=1)
"""How far in the future a range is certainly empty, even if rounded to whole days."""

_LIMITS = names(
    "limit perpage pagesize size max maxresults resultsperpage rows top pagelimit count"
)
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


class RestApi(BaseModel):
    """A JSON API.

    >>> RestApi(source_id="quakes", url="https://example.org/quakes", records="features",
    ...      id="id", timestamps=("properties.updated",), timestamp_format="milliseconds").overlap
    datetime.timedelta(days=1)
    """

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
        None,
        title="Since",
        description="The parameter that asks for records from a time on; empty: there is none.",
    )
    until: TimeParameter | None = Field(
        None,
        title="Until",
        description="The parameter that asks for records before a time; empty: there is none.",
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
        description="A run lists all there is, so that what is missing was removed. It has no "
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
            raise ValueError("a full snapshot reads all there is; leave overlap empty")
        for name in ("params", "body"):
            if (found := secret_in("", getattr(self, name))) is not None:
                raise ValueError(
                    f"{name} would hold a secret in {found}; name the secret in key, and {found} "
                    "in key_param"
                )
        return self

    @property
    def ignores_range(self) -> bool:
        """Whether the API delivers everything, whatever range is requested."""
        return self.since is None

    @property
    def uses_known(self) -> bool:
        """``True``: a single document that the sink has is not read again."""
        return True

    async def pages(
        self, start: datetime | None, until: datetime | None, known: KnownContent | None = None
    ) -> AsyncIterator[Page]:
        """Yield the records of a range, page by page as the API delivers them.

        The last page says how the end was known. A list that moved is read again, and may repeat
        records.
        """
        async with self.http() as http:
            is_whole = isinstance(self.paging, SinglePage) and self.ignores_range and until is None
            requests = _Requests(self, http, self.bounds_of(start, until), is_whole, known)
            async with aclosing(self.fetch_pages(http, PageFetcher(requests))) as pages:
                async for page in pages:
                    if is_whole:
                        page = replace(
                            page, document=requests.document, unchanged=requests.is_known
                        )
                    yield page

    async def fetch_pages(
        self,
        http: SourceHttp,
        fetcher: PageFetcher,
        check: Callable[[object], str | None] = lambda _: None,
    ) -> AsyncGenerator[Page, None]:
        """Yield the pages of a list, the last one with the proof of the end.

        ``check`` returns the problem of a document that looks like a page.
        """
        is_said = False
        shared = SharedIds(self.id if isinstance(self.id, str) else " and ".join(self.id))
        async with aclosing(fetcher.pages()) as steps:
            async for got in steps:
                if problem := check(got.document):
                    raise fetcher.error(http.masked(problem)[:_LONGEST_PROBLEM])
                is_said = fetcher.completeness is not None
                made = paged(shared.seen(self.read(got.items)), **_marks(http, fetcher))
                async for page in in_turns(made, len(got.answer.body)):
                    yield page
                if shared.problem:
                    raise fetcher.error(f"{shared.problem}: name the path of their own ids")
        if shared.doubt:
            logger.warning(
                "Source %r %s that differ; see whether that is the path of their ids.",
                self.source_id,
                shared.doubt,
                extra={"source_id": self.source_id},
            )
        if not is_said:
            yield Page(**_marks(http, fetcher))

    @asynccontextmanager
    async def http(self) -> AsyncIterator[SourceHttp]:
        """Open the HTTP client of one run, with the key in it."""
        keys = None
        if self.key is not None:
            value = await resolve_secret(self.key, self.source_id)
            if self.key_param:
                keys = Credentials(self.url, params={self.key_param: value})
            else:
                keys = Credentials(
                    self.url, {self.key_header: self.auth_prefix + value}, redact=(value,)
                )
        async with source_http(
            self.source_id,
            credentials=keys,
            rate=self.rate,
            throttle_statuses=self.throttle_statuses,
            connection=self.connection,
        ) as http:
            yield http

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

    def fetcher(
        self, http: SourceHttp, start: datetime | None, until: datetime | None
    ) -> PageFetcher:
        """Return a page fetcher for a range of an API whose pagination is known, not declared."""
        return PageFetcher(_Requests(self, http, self.bounds_of(start, until)), is_known=True)

    async def fetch(self, http: SourceHttp, step: PageRequest) -> PageResponse:
        """Return one page of the API, without judging it as a part of a list.

        Raises:
            SourceError: It did not arrive, or has another structure.
        """
        requests = _Requests(self, http, self.bounds_of(None, None))
        return await requests.page(step, accept=(), may_be_empty=True)

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


@dataclass
class _Requests:
    """The requests of one reading of an API, and the pages made of their answers.

    Args:
        is_single: Whether the single answer is all that the API has.
        known: The content that the sink has of it.

    Attributes:
        document: The digest of that answer.
        is_known: Whether the sink has all its records, so that none was read.
    """

    api: RestApi
    http: SourceHttp
    bounds: Mapping[Location, dict[str, Any]]
    is_single: bool = False
    known: KnownContent | None = None
    document: str | None = None
    is_known: bool = False

    @property
    def source_id(self) -> str:
        return self.api.source_id

    @property
    def paging(self) -> Pagination:
        return self.api.paging

    @property
    def records(self) -> str:
        return self.api.records

    async def page(
        self, step: PageRequest, *, accept: Collection[int], may_be_empty: bool
    ) -> PageResponse:
        """Return a page; one with a status of ``accept``, or an empty body, has no items."""
        # A page may call itself a part; a single document that does so lacks the rest.
        usual = OK if isinstance(self.api.paging, SinglePage) else (*OK, 206)
        answer = await self._ask(step, (*usual, *accept))
        nothing: Any = {} if self.api.records_keyed_by_id else []
        if answer.status in accept:
            return PageResponse(answer, None, nothing)
        if answer.is_empty:
            if self.api.records_optional or (answer.status == 204 and may_be_empty):
                return PageResponse(answer, None, nothing)
            raise self.error(
                f"answered {answer.status} with nothing in it: set records_optional, if that means "
                "that "
                "there are no records"
            )
        if self.is_single:
            self.document = document_digest(self.api, answer.body)
            if self.known is not None and self.known.document == self.document:
                self.is_known = True
                return PageResponse(answer, None, nothing)
        document = await self.http.document(answer, self.api.records)
        items = self._items(document)
        # The envelope of a large document is without its records.
        around = value_at(document.envelope, self.api.records)
        if isinstance(self.api.paging, CursorPagination) and around == [] and len(items):
            around.append(items[-1])
        return PageResponse(answer, document.envelope, items)

    async def nothing(self, step: PageRequest) -> PageResponse | None:
        """Return a page of a range that has nothing yet; ``None`` where no range was asked."""
        api = self.api
        since = api.since
        if since is None or since.parameter not in self.bounds[since.location]:
            return None
        ahead = utc_now() + _AHEAD
        beside = replace(self, bounds=api.bounds_of(ahead, ahead), is_single=False)
        return await beside.page(step, accept=(), may_be_empty=True)

    async def keys(self, items: Any) -> list[str]:
        """Return the raw id and times of each item, or the whole item where it has no id.

        A single document needs no keys; an item that is too large to be held is identified as a
        whole.
        """
        api = self.api
        if isinstance(api.paging, SinglePage):
            return ["document"] if len(items) else []
        if isinstance(items, ManyItems | ManyKeyed) and len(items) > _MOST_KEYS:
            return [items.digest().hex()]
        if api.records_keyed_by_id:
            return [f"{key}{KEY_END}{_times(item, api.timestamps)}" for key, item in items.items()]
        reader = api.reader()
        found = list[str]()
        for item in items:
            if len(found) % _AT_A_STRETCH == 0:
                await asyncio.sleep(0)
            record_id = reader.record_id(item)
            if record_id is None:
                text = json.dumps(item, sort_keys=True, default=repr)
                found.append(blake2b(text.encode(errors="replace"), digest_size=16).hexdigest())
            else:
                found.append(f"{record_id}{KEY_END}{_times(item, api.timestamps)}")
        return found

    def is_round(self, count: int) -> bool:
        """Return whether a page has exactly as many items as a parameter requests at most."""
        params = self.api.params.items()
        limits = [str(value) for name, value in params if plain(name) in _LIMITS]
        is_round = count > 0 and str(count) in limits
        if is_round:
            logger.warning(
                "Source %r got just the %d records that its parameters ask for at most, and "
                "declares no paging: whether there are more is not known. Declare its paging.",
                self.source_id,
                count,
                extra={"source_id": self.source_id},
            )
        return is_round

    def refusal(self, got: PageResponse) -> SourceError:
        """Return the error for an answer whose status does not allow reading to continue."""
        return SourceError(
            f"Source {self.source_id!r} answered {got.answer.status} from "
            f"{self.http.redact_url(got.answer.url)}, behind pages that it gave; see what it "
            "requires, "
            "or name the status in end_status, if it means that there are no more pages.",
            self.source_id,
        )

    def error(self, problem: str, *, transient: bool = False) -> SourceError:
        """Return the error for a problem of the API."""
        step = (
            "collect it again later"
            if transient
            else "see whether it has changed, or how its source is set up"
        )
        subject = f"The API of source {self.source_id!r} at {self.http.redact_url(self.api.url)}"
        return self.http.error(f"{subject} {problem}", step, transient=transient)

    async def _ask(self, step: PageRequest, accept: Collection[int]) -> HttpResponse:
        api = self.api
        if step.url is not None and not is_same_host(api.url, step.url):
            raise self.error(
                f"leads to a next page on another host, {self.http.redact_url(step.url)}, which is "
                "not "
                "asked; set keep_host, if that is the same service behind a gateway"
            )
        # An address from the API itself has all the parameters.
        query = {**api.params, **self.bounds["query"], **step.query} if step.url is None else {}
        url = step.url or api.url
        if api.method == "GET":
            return await self.http.get(
                url,
                params=query,
                headers=api.headers,
                accept=accept,
                idempotent=not step.is_once,
            )
        body = copy.deepcopy(api.body or {})
        for path, value in {**self.bounds["body"], **step.body}.items():
            _put(body, path, value)
        return await self.http.post(
            url,
            body,
            idempotent=not step.is_once,
            params=query,
            headers=api.headers,
            accept=accept,
        )

    def _items(self, document: Document) -> Any:
        """Return the list of a page, or the object whose keys are the ids."""
        api, envelope, items = self.api, document.envelope, document.items
        for path, values in api.expected_values.items():
            found = value_at(envelope, path)
            if not any(type(each) is type(found) and each == found for each in values):
                raise self.error(
                    f"has {self.http.quoted(found)} at {path!r} instead of {values!r}"
                    f"{self.http.said(envelope)}"
                )
        if items is None and api.records_optional and isinstance(envelope, dict):
            self._refuse_failure(envelope, None)
            self._refuse_other_list(envelope)
            return {} if api.records_keyed_by_id else []
        if not (is_keyed if api.records_keyed_by_id else is_list)(items):
            wanted = "an object of ids" if api.records_keyed_by_id else "a list"
            place = f"at {api.records!r}" if api.records else "as its whole"
            raise self.error(f"does not have {wanted} {place}{self.http.said(envelope)}")
        self._refuse_failure(envelope, items)
        return items

    def _refuse_failure(self, envelope: object, items: Sized | None) -> None:
        """Refuse an answer that says next to its records that it failed, or is a part."""
        api = self.api
        if not api.records and api.records_keyed_by_id:
            return  # these are records
        if told := failure(envelope, items, api.records, api.expected_values):
            place, value = told
            raise self.error(
                f"answers with {self.http.quoted(value)} at {place!r}, as if it had failed"
                f"{self.http.said(envelope)}: declare it in expected_values, if it is right"
            )

    def _refuse_other_list(self, envelope: object) -> None:
        """Refuse an answer that lacks the list, and has a list of such records elsewhere."""
        wanted = self.api.id if isinstance(self.api.id, str) else next(iter(self.api.id), "")
        place = None if self.api.records_keyed_by_id or not wanted else other_list(envelope, wanted)
        if place is not None:
            raise self.error(
                f"does not have a list at {self.api.records!r}, and has one at {place!r}"
            )


def _marks(http: SourceHttp, fetcher: PageFetcher) -> dict[str, Any]:
    return {
        "asked_at": http.asked_at,
        "completeness": fetcher.completeness,
        "total": fetcher.total,
    }


def _times(item: object, paths: tuple[str, ...]) -> str:
    return repr([value_at(item, path) for path in paths])


def _put(body: dict[str, Any], path: str, value: object) -> None:
    *above, name = path.split(".")
    for each in above:
        below = body.setdefault(each, {})
        if not isinstance(below, dict):
            below = body[each] = {}
        body = below
    body[name] = value
