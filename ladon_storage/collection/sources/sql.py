"""Any table or view of a database, read by timestamp and id through SQLAlchemy.

- A row of a transaction that commits late appears behind the watermark: only the overlap finds it,
  so it should be longer than the longest transaction that writes to the table.
- What was deleted is not seen, and a row whose timestamp stands still is not read again.
- Addresses carry passwords: one with a password is refused as a setting, and kept as a secret.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from ladon_storage.collection.durations import Seconds, duration
from ladon_storage.collection.records import PAGE_RECORDS, Item, Page, Record, Reject, paged
from ladon_storage.collection.secrets import SecretName, secret
from ladon_storage.collection.sources.fields import SETTINGS, SOURCE_ID_TEXT, Overlap, overlap_field
from ladon_storage.collection.sources.sql_database import DatabaseThread, parsed_address
from ladon_storage.collection.sources.sql_table import Key, Layout, Row, TableReader
from ladon_storage.collection.sources.sql_values import Times, id_text, json_value, row_moment
from ladon_storage.collection.sources.times import ZoneName, zone_of
from ladon_storage.errors import ConfigurationError, SourceError
from ladon_storage.models import SourceId

UNREACHABLE_ROWS = 1_000
"""So many rows without timestamp or id a first run reads, so that it fails where they are many."""

UNREACHABLE_ROWS_AGAIN = 5
"""So many a later run reads: they must not fail a run only because it has little else to read."""

_SECRET_PART = re.compile("pass|secret|token", re.IGNORECASE)


def check_address(value: str) -> str:
    """Return ``value`` if it is the address of a database, and holds no password.

    Raises:
        ValueError: It is not.
    """
    if not value:
        return value
    url = parsed_address(value)
    if url is None:
        raise ValueError("should be an address such as postgresql://reader@db.example.org/logs")
    if url.password is not None or any(_SECRET_PART.search(name) for name in url.query):
        raise ValueError(
            "should have no password; keep the whole address as a secret, and set url_secret to "
            "its name"
        )
    return value


class SqlTable(BaseModel):
    """Collect the rows of a table or view, each as a JSON object of its columns.

    >>> SqlTable(source_id="logins", url="sqlite:///app.db", table="logins").ordered
    True
    """

    model_config = ConfigDict(**SETTINGS, title="SQL table")

    kind: Literal["sql"] = Field("sql", title="Kind", description="The kind of source.")
    source_id: SourceId = Field(title="Source id", description=SOURCE_ID_TEXT)
    url: Annotated[str, AfterValidator(check_address)] = Field(
        "",
        title="Address",
        description="Where the database is, without a password, such as sqlite:///app.db or "
        "postgresql://reader@db.example.org/logs.",
    )
    url_secret: SecretName | None = Field(
        None,
        title="Name of the secret address",
        description="Name of a Prefect Secret block, or of an environment variable, that holds the "
        "whole address with its password (percent-encoded); instead of the address above.",
    )
    table: str = Field(min_length=1, title="Table", description="The table or view to read.")
    schema_name: Annotated[str, Field(title="Name")] | None = Field(
        None,
        title="Schema",
        description="The schema of the table; empty: where the connection looks first.",
    )
    id_column: str = Field(
        "id", min_length=1, title="Id column", description="A column whose values are unique."
    )
    time_column: str = Field(
        "updated_at",
        min_length=1,
        title="Timestamp column",
        description="A column that grows with each change of a row; with the id it should have an "
        "index.",
    )
    times: Times = Field(
        "datetime",
        title="Timestamps are",
        description="How the column tells the time: by its own type, as ISO 8601 texts, or as "
        "seconds or milliseconds from 1970 on, which may be numbers or texts of digits.",
    )
    zone: ZoneName = Field(
        "UTC", title="Time zone", description="The zone of timestamps that have no offset."
    )
    columns: tuple[str, ...] = Field(
        (), title="Columns", description="The columns to collect; empty: all of them."
    )
    page_size: int = Field(
        PAGE_RECORDS,
        ge=1,
        le=100_000,
        title="Page (rows)",
        description="How many rows one statement reads.",
    )
    timeout: Annotated[Seconds, Field(gt=timedelta(0), le=timedelta(hours=1))] = duration(
        timedelta(minutes=1),
        timedelta(seconds=1),
        "Timeout (seconds)",
        "How long PostgreSQL may work on one statement, or SQLite wait for a writer.",
    )
    overlap: Overlap = overlap_field(timedelta(minutes=10))

    @model_validator(mode="after")
    def _require_one_address(self) -> SqlTable:
        if bool(self.url) == (self.url_secret is not None):
            raise ValueError("should have either url or url_secret")
        return self

    @property
    def order_guaranteed(self) -> bool:
        """Whether the request itself asks for the order: the keyset does."""
        return self.ordered

    @property
    def ordered(self) -> bool:
        """Whether pages come in the order of time: the order of texts with offsets is another."""
        return self.times != "text"

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the rows from ``start`` on, before ``until``, by timestamp and id.

        A row without a timestamp or an id is in no range: each run rejects some of them.
        """
        layout = Layout(
            **self.model_dump(include={*Layout.__dataclass_fields__} - {"zone"}),
            schema=self.schema_name,
            zone=zone_of(self.zone),
        )
        async with _opened(layout, await self._address()) as (reader, thread):
            rows = _Rows(layout, reader.names, self.ordered and reader.is_text)
            most = UNREACHABLE_ROWS if start is None else UNREACHABLE_ROWS_AGAIN
            if lost := await thread.do(partial(reader.unreachable, most)):
                yield Page(rejects=[rows.unreachable(row) for row in lost])
            after: Key | None = None
            more = True
            while more:
                found, more = await thread.do(partial(reader.page, start, until, after))
                if not found:
                    break
                after = found[-1].key
                for page in paged(rows.read(found), self.page_size):
                    yield page
            yield Page(completeness="last page")

    async def _address(self) -> URL:
        value = self.url
        if self.url_secret is not None:
            value = await secret(self.url_secret, self.source_id)
        url = parsed_address(value)
        if url is None:
            raise ConfigurationError(
                f"The secret {self.url_secret!r} of source {self.source_id!r} is no address of a "
                "database; write it as postgresql://reader:password@db.example.org/logs, and what "
                "is special in the password percent-encoded."
            )
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        return url


@dataclass
class _Rows:
    """Make records of rows."""

    layout: Layout
    names: tuple[str, ...]
    must_ascend: bool

    def __post_init__(self) -> None:
        self._moment = row_moment(self.layout.times, self.layout.zone)
        self._highest: datetime | None = None

    def read(self, rows: list[Row]) -> Iterator[Item]:
        """Yield the records of rows, and what cannot be used."""
        for row in rows:
            try:
                moment = self._moment_of(row)
                yield Record.of(id_text(row.key[1]), moment, self._content(row))
            except ValueError as error:
                yield self._reject(error, row)

    def unreachable(self, row: Row) -> Reject:
        """Return the reject of a row that has no timestamp or no id."""
        column = self.layout.time_column if row.key[0] is None else self.layout.id_column
        return self._reject(f"{column}: missing, or no number where one was declared", row)

    def _moment_of(self, row: Row) -> datetime:
        try:
            moment = self._moment(row.key[0])
        except ValueError as error:
            raise ValueError(f"{self.layout.time_column}: {error}") from None
        if self.must_ascend:
            if self._highest is not None and moment < self._highest:
                raise SourceError(
                    f"The texts in {self.layout.time_column!r} of source "
                    f"{self.layout.source_id!r} sort in another order than their times: "
                    f"{row.key[0]!r} comes after {self._highest.isoformat()}; set times to text.",
                    self.layout.source_id,
                )
            self._highest = moment
        return moment

    def _content(self, row: Row) -> dict[str, object]:
        content = {}
        for name, value in zip(self.names, row.values, strict=True):
            try:
                content[name] = json_value(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return content

    def _reject(self, reason: object, row: Row) -> Reject:
        raw = {name: _told(value) for name, value in zip(self.names, row.values, strict=True)}
        return Reject.of(reason, raw, None if row.key[1] is None else str(_told(row.key[1])))


def _told(value: object) -> object:
    try:
        return json_value(value)
    except ValueError:
        return repr(value)


@asynccontextmanager
async def _opened(layout: Layout, url: URL) -> AsyncIterator[tuple[TableReader, DatabaseThread]]:
    try:
        reader = TableReader(layout, url)
    except (ImportError, SQLAlchemyError) as error:
        raise ConfigurationError(
            f"Source {layout.source_id!r} cannot use a database of {url.drivername!r}: "
            f"{error}; install its driver, such as ladon-storage[postgresql]."
        ) from None
    thread = DatabaseThread(layout.source_id, url)
    try:
        await thread.do(reader.open)
        yield reader, thread
    finally:
        await thread.close(reader.close)
