"""A service that moves to another database: with its versions, its history and its tokens."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ladon_storage.errors import ConfigurationError
from ladon_storage.models import (
    EMPTY_WATERMARK,
    Precondition,
    WatermarkReset,
    WatermarkStatus,
    WatermarkUpdate,
)
from ladon_storage.server.access import add_token, digest
from ladon_storage.server.copying import copy_content
from ladon_storage.server.database import open_database
from ladon_storage.server.store import WatermarkDatabase

START = datetime(2024, 1, 1, tzinfo=UTC)


async def filled(file: Path) -> bytes:
    """Fill a file with what a service has after a while; return the digest of its token."""
    store = await WatermarkDatabase.open(file)
    for number in range(30):
        for day in range(3):
            when = START + timedelta(days=day, microseconds=number)
            await store.put(
                f"größe/{number}",
                WatermarkUpdate(timestamp=when, run_id=f"r{day}", ledger={"a": ["\0", day]}),
                actor="10.0.0.1",
            )
    held = WatermarkUpdate(
        timestamp=START, status=WatermarkStatus.RUNNING, run_id="now", lease_seconds=90.5
    )
    await store.put("held", held)
    failed = WatermarkUpdate(timestamp=START, status=WatermarkStatus.FAILED, error_message="a\nb")
    await store.put("failed", failed)
    await store.put("nothing", WatermarkUpdate(timestamp=EMPTY_WATERMARK))
    await store.reset("größe/1", WatermarkReset(timestamp=START, reason="again", actor="ann"))
    await store.put("gone", WatermarkUpdate(timestamp=START))
    await store.delete("gone", reason="test")
    await store.close()
    with closing(open_database(file)) as connection:
        token = add_token(connection, "team", START, read_only=True, prefix="a/")
        # The last version that was given out is of no line any more.
        connection.execute("DELETE FROM history WHERE source_id = 'gone'")
    return digest(token.encode())


async def content(database: Path | str, token: bytes) -> list[object]:
    """Return all that a service says of its sources."""
    store = await WatermarkDatabase.open(database)
    found: list[object] = []
    for each in (await store.page(limit=1000)).watermarks:
        found += [each, each.etag, await store.get(each.source_id)]
        found += (await store.history(each.source_id)).changes
    found.append(store.find_token(token))
    await store.close()
    return found


async def test_content_goes_to_postgresql_and_back_as_it_is(
    tmp_path: Path, empty_postgres: str
) -> None:
    """Nothing is lost on the way, and no version is given out twice."""
    file, back = tmp_path / "w.db", tmp_path / "back.db"
    token = await filled(file)
    before = await content(file, token)
    copied = copy_content(file, empty_postgres)
    assert (copied.watermarks, copied.changes, copied.tokens) == (33, 94, 1)
    assert await content(empty_postgres, token) == before
    assert copy_content(empty_postgres, back) == copied
    assert await content(back, token) == before
    for database in (file, empty_postgres, back):
        store = await WatermarkDatabase.open(database)
        held = await store.get("held")
        stored = await store.put(
            "held", WatermarkUpdate(timestamp=START, run_id="now"), Precondition.unchanged(held)
        )
        assert stored.watermark.etag == '"97"'
        await store.close()


async def test_database_with_content_is_not_copied_into(
    tmp_path: Path, empty_postgres: str
) -> None:
    """A second copy, and one from a file that is not there, are refused and change nothing."""
    file = tmp_path / "w.db"
    token = await filled(file)
    copy_content(file, empty_postgres)
    before = await content(empty_postgres, token)
    with pytest.raises(ConfigurationError, match="content already"):
        copy_content(file, empty_postgres)
    with pytest.raises(ConfigurationError, match="There is no database"):
        copy_content(tmp_path / "absent.db", empty_postgres)
    assert await content(empty_postgres, token) == before
