"""Any table or view of a database, read by timestamp and id through SQLAlchemy.

- The tested databases are SQLite, PostgreSQL (psycopg), and MariaDB (pymysql, as for MySQL). A run
  that reads any other database logs that.
- A row of a transaction that commits late appears behind the watermark. Only the overlap finds it,
  so the overlap should be longer than the longest transaction that writes to the table.
- Deleted rows are not seen, and a row whose timestamp does not change is not read again.
- Addresses contain passwords: one with a password is refused as a setting, and kept as a secret.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from ladon_storage.collection.credentials import SecretName, resolve_secret
from ladon_storage.collection.durations import Seconds, duration
from ladon_storage.collection.records import (
    PAGE_RECORDS,
    Item,
    Page,
    paged,
)
from ladon_storage.errors import ConfigurationError
from ladon_storage.sources.fields import (
    SETTINGS,
    SOURCE_ID_TEXT,
    Overlap,
    SourceSettings,
    overlap_field,
)
from ladon_storage.sources.sql.database import DatabaseThread, parsed_address
from ladon_storage.sources.sql.rows import TableRows
from ladon_storage.sources.sql.sessions import is_tested, with_driver
from ladon_storage.sources.sql.table import Key, Layout, TableReader
from ladon_storage.sources.sql.values import (
    SqlTimestampFormat,
)
from ladon_storage.sources.timestamps import ZoneName, zone_of
from ladon_storage.values import SourceId

UNREACHABLE_ROWS = 1_000
"""Rows without timestamp or id that a first run reads, so that it fails if they are many."""

UNREACHABLE_ROWS_AGAIN = 5
"""Such rows that a later run reads: they must not fail a run that has little else to read."""

logger = logging.getLogger(__name__)

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
            "should not contain a password; store the whole address as a secret, and set "
            "url_secret to its name"
        )
    return value


class SqlTable(SourceSettings):
    """The rows of a table or view, each as a JSON object of its columns.

    >>> SqlTable(source_id="logins", url="sqlite:///app.db", table="logins").ordered
    True
    """

    model_config = ConfigDict(**SETTINGS, title="SQL table")

    kind: Literal["sql"] = Field("sql", title="Kind", description="Kind of source.")
    source_id: SourceId = Field(title="Source id", description=SOURCE_ID_TEXT)
    url: Annotated[str, AfterValidator(check_address)] = Field(
        "",
        title="Address",
        description="URL of the database, without a password, such as sqlite:///app.db, "
        "postgresql://reader@db.example.org/logs or mysql://reader@db.example.org/logs.",
    )
    url_secret: SecretName | None = Field(
        None,
        title="Secret address name",
        description="Name of the Prefect Secret block or environment variable that holds the whole "
        "URL with its percent-encoded password. It replaces the address above.",
    )
    table: str = Field(min_length=1, title="Table", description="Table or view to read.")
    schema_name: Annotated[str, Field(title="Name")] | None = Field(
        None,
        title="Schema",
        description="Schema of the table. If empty, the default schema of the connection.",
    )
    id_column: (
        Annotated[str, Field(min_length=1, title="Column")]
        | Annotated[
            tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, title="Columns")
        ]
    ) = Field(
        "id",
        title="Id column",
        description="Column with unique values, or several columns that are unique together.",
    )
    timestamp_column: str = Field(
        "updated_at",
        min_length=1,
        title="Timestamp column",
        description="Column that increases with each change of a row. It should be indexed "
        "together with the id.",
    )
    timestamp_format: SqlTimestampFormat = Field(
        "datetime",
        title="Timestamp format",
        description="Format of the column: its own date type, ISO 8601 text, or Unix time in "
        "seconds, milliseconds, microseconds or nanoseconds, as numbers or digits.",
    )
    zone: ZoneName = Field(
        "UTC", title="Time zone", description="Time zone of timestamps without an offset."
    )
    columns: tuple[str, ...] = Field(
        (), title="Columns", description="Columns to collect. If empty, all of them."
    )
    page_size: int = Field(
        PAGE_RECORDS,
        ge=1,
        le=100_000,
        title="Page size (rows)",
        description="Rows read by one statement.",
    )
    timeout: Annotated[Seconds, Field(gt=timedelta(0), le=timedelta(hours=1))] = duration(
        timedelta(minutes=1),
        timedelta(seconds=1),
        "Timeout (seconds)",
        "Limit on one statement of a server, or on SQLite's wait for a writer.",
    )
    overlap: Overlap = overlap_field(timedelta(minutes=10))

    @model_validator(mode="after")
    def _require_one_address(self) -> SqlTable:
        if bool(self.url) == (self.url_secret is not None):
            raise ValueError("should have exactly one of url and url_secret")
        return self

    @property
    def ordered(self) -> bool:
        """Whether pages are in time order; the order of texts with offsets is another."""
        return self.timestamp_format != "text"

    @property
    def order_guaranteed(self) -> bool:
        """Whether each query has that order itself, as it does if there is one."""
        return self.ordered

    async def pages(self, start: datetime | None, until: datetime | None) -> AsyncIterator[Page]:
        """Yield the rows from ``start`` on, before ``until``, by timestamp and id.

        A row without a timestamp or an id is in no range. Each run rejects some of them, in
        addition to its range: alone they would make a quiet table unusable.
        """
        id_columns = (self.id_column,) if isinstance(self.id_column, str) else self.id_column
        layout = Layout(
            **self.model_dump(include={*Layout.__dataclass_fields__} - {"zone"}),
            id_columns=id_columns,
            schema=self.schema_name,
            zone=zone_of(self.zone),
            is_id_declared="id_column" in self.model_fields_set,
        )
        url = await self._address()
        self._warn_of_what_is_not_tested(url)
        async with _opened(layout, url) as (reader, thread):
            marks: dict[str, Any] = {"asked_at": await thread.do(reader.now)}
            await thread.do(partial(reader.look_at_texts, until))
            must_ascend = self.ordered and reader.is_text
            rows = TableRows(
                layout,
                reader.names,
                reader.zone,
                must_ascend,
                is_untyped=reader.is_untyped,
                primary_key=reader.primary_key,
            )
            lost = await self._unreachable(reader, thread, rows, start)
            after: Key | None = None
            more = True
            while more:
                found, more = await thread.do(partial(reader.page, start, until, after))
                if must_ascend and more and after is None:
                    text = found[0].time
                    if not await thread.do(partial(reader.are_alike, text, start, until)):
                        await self._prove_order(reader, thread, replace(rows), start, until)
                if found:
                    after = found[-1].key
                if found or start is None:
                    for page in paged(lost, UNREACHABLE_ROWS):
                        yield replace(page, **marks)
                    lost = []
                if not more:
                    marks["completeness"] = "last page"
                for page in paged(rows.read(found), self.page_size, **marks):
                    yield page
            if rows.may_mix_types:
                rows.check_types(await thread.do(partial(reader.alike_ids, start, until)))

    async def _prove_order(
        self,
        reader: TableReader,
        thread: DatabaseThread,
        rows: TableRows,
        start: datetime | None,
        until: datetime | None,
    ) -> None:
        """Refuse texts that sort in another order than their times, before a page is promoted.

        A run that goes on behind a page would leave out the earlier times that sort behind it.
        """
        after: Any = None
        while times := await thread.do(partial(reader.times, start, until, after)):
            rows.check_order(times)
            after = times[-1]

    async def _unreachable(
        self, reader: TableReader, thread: DatabaseThread, rows: TableRows, start: datetime | None
    ) -> list[Item]:
        """Return some of the rows that are in no range, and log how many more there are."""
        is_first = start is None
        most = UNREACHABLE_ROWS if is_first else UNREACHABLE_ROWS_AGAIN
        lost, count = await thread.do(partial(reader.unreachable, most, is_first=is_first))
        if count > len(lost):
            logger.warning(
                "Source %r has %d rows without a usable timestamp or id in %r, of which this "
                "run reads %d. No run can detect which of them are new. Correct them, or "
                "collect from a view without them.",
                self.source_id,
                count,
                self.table,
                len(lost),
                extra={"source_id": self.source_id},
            )
        return rows.unreachable(lost)

    def _warn_of_what_is_not_tested(self, url: URL) -> None:
        if not is_tested(url):
            logger.warning(
                "Source %r reads a database of %r, which is not tested: SQLite, PostgreSQL "
                "(psycopg), and MariaDB and MySQL (pymysql) are. Compare the timestamps and the "
                "number of its records with the table.",
                self.source_id,
                url.drivername,
                extra={"source_id": self.source_id},
            )

    async def _address(self) -> URL:
        value = self.url
        if self.url_secret is not None:
            value = await resolve_secret(self.url_secret, self.source_id)
        url = parsed_address(value)
        if url is None:
            raise ConfigurationError(
                f"The secret {self.url_secret!r} of source {self.source_id!r} is not the "
                "address of a database. Write it as "
                "postgresql://reader:password@db.example.org/logs, with special characters of "
                "the password percent-encoded."
            )
        encoding = str(url.query.get("client_encoding", ""))
        if re.sub("[^a-z]", "", encoding.lower()) == "sqlascii":  # as PostgreSQL reads its name
            raise ConfigurationError(
                f"The address of source {self.source_id!r} has client_encoding={encoding}, which "
                "makes bytes of all texts. Name the encoding that they are in, such as "
                "client_encoding=LATIN1."
            )
        return with_driver(url)


@asynccontextmanager
async def _opened(layout: Layout, url: URL) -> AsyncIterator[tuple[TableReader, DatabaseThread]]:
    try:
        reader = TableReader(layout, url)
    except (ImportError, SQLAlchemyError) as error:
        raise ConfigurationError(
            f"Source {layout.source_id!r} cannot use a database of {url.drivername!r}: "
            f"{error}. Install its driver, such as ladon-storage[postgresql] or "
            "ladon-storage[mysql]."
        ) from None
    thread = DatabaseThread(layout.source_id, url)
    try:
        await thread.do(reader.open)
        yield reader, thread
    finally:
        await thread.close(reader.close)
