"""The pagination loop: from page to page, to an end that is proven.

- A list that moved while it was read is read again, and the next reading keeps the facts that the
  one before it learned.
- A list that cannot be read to a proven end ends with an error, never with fewer records.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ladon_storage.collection.records import Completeness
from ladon_storage.errors import SourceError
from ladon_storage.sources.rest.listing import MovedError, PagedApi
from ladon_storage.sources.rest.page import PageResponse
from ladon_storage.sources.rest.pagination import OffsetPagination
from ladon_storage.sources.rest.reading import Learned, Reading
from ladon_storage.sources.rest.reading_by_offset import ReadingByOffset
from ladon_storage.sources.rest.reading_by_steps import ReadingBySteps

logger = logging.getLogger(__name__)

READINGS = 5
"""The limit on readings of a list that moves every time."""


class PageFetcher:
    """The pages of a list, in as many readings as it takes.

    Args:
        api: The source.
        is_known: Whether the number of its first page is known, and not only declared.
    """

    def __init__(self, api: PagedApi, *, is_known: bool = False) -> None:
        self._api = api
        paging = api.paging
        self._skips = paging if isinstance(paging, OffsetPagination) else None
        self._learned = Learned(
            limit=self._skips.page_size if self._skips else 0,
            overlaps=self._skips is not None and not self._skips.stable,
            is_known=is_known,
        )

    @property
    def completeness(self) -> Completeness | None:
        """The proof of the end; ``None`` before it."""
        return self._learned.completeness

    @property
    def total(self) -> int | None:
        """The number of items that the API states."""
        return self._learned.total

    def error(self, problem: str, step: str = "") -> SourceError:
        """Return the error for a problem of the API, with the next step if it is a special one."""
        return self._api.error(problem, step)

    async def pages(self) -> AsyncGenerator[PageResponse, None]:
        """Yield the new records of each page; a list that is read again repeats records.

        Raises:
            SourceError: A page has another structure, leads nowhere or in a circle, or the end is
                contradicted.
        """
        reason = ""
        for reading in range(1, READINGS + 1):
            try:
                async with aclosing(self._reading().pages()) as pages:
                    async for got in pages:
                        yield got
            except MovedError as error:
                reason = f": it {error}" if str(error) else ""
                logger.info(
                    "Source %r: its list moved while it was read (%d of %d).",
                    self._api.source_id,
                    reading,
                    READINGS,
                    extra={"source_id": self._api.source_id},
                )
            else:
                return
        raise self._api.error(
            f"changed in each of {READINGS} readings, so records may have been skipped{reason}",
            transient=True,
        )

    def _reading(self) -> Reading:
        if self._skips is not None and self._learned.overlaps:
            return ReadingByOffset(self._api, self._learned, self._skips)
        return ReadingBySteps(self._api, self._learned)
