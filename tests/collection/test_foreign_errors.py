"""Errors of custom classes on their way out of the engine."""

from __future__ import annotations

import asyncio
import gc
import html
import json
import re
import traceback
import weakref
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from yarl import URL

from ladon_storage.collection.credentials import resolve_secret
from ladon_storage.collection.foreign_errors import cancellations_checked, errors_fit_to_show
from ladon_storage.collection.records import Page, Reject
from ladon_storage.collection.run import run
from ladon_storage.errors import (
    CollectionError,
    SourceError,
    StorageResponseError,
    without_secrets,
)
from ladon_storage.testing.doubles import (
    RememberingSink,
    ScriptedSource,
    ScriptedStorage,
    record,
)


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error that cannot be changed."""

    text: str


class SilentError(Exception):
    """An error whose class fails to tell it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_error_that_cannot_be_changed_is_told_by_another() -> None:
    """The text is that of the error, and not of the attempt to change it."""
    with pytest.raises(SourceError) as caught, errors_fit_to_show("own"):
        raise FrozenError("kev\x1b[31m")
    assert str(caught.value) == r"FrozenError: kev\x1b[31m"


def test_error_without_a_text_is_told_by_another() -> None:
    """Whatever shows it would fail, such as Prefect's states; the class says what went wrong."""
    with pytest.raises(SourceError) as caught, errors_fit_to_show("own"):
        raise SilentError("x")
    assert str(caught.value) == "SilentError: its text cannot be shown (RuntimeError)"


async def test_cancellation_that_was_not_requested_is_an_error() -> None:
    """A task that ends with it would look as if its caller had cancelled it."""
    lost = asyncio.create_task(asyncio.sleep(60))
    lost.cancel()
    place = r"'own' ended by .* in test_foreign_errors\.py, line \d+:"
    with pytest.raises(CollectionError, match=place), cancellations_checked("own"):
        await lost


async def test_error_in_place_of_a_cancellation_keeps_nothing_in_a_cycle() -> None:
    """A task that ends with it goes when it is let go, with the pages in its frames."""

    async def work() -> None:
        with cancellations_checked("own"):
            raise asyncio.CancelledError

    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(work())
        await asyncio.wait({task})
        assert isinstance(task.exception(), CollectionError)
        ended = weakref.ref(task)
        del task
        assert ended() is None
    finally:
        gc.enable()


async def test_cancellation_of_a_class_of_its_own_stays_what_it_is() -> None:
    """Prefect ends code that exceeds its time by one, wherever that is."""

    class OutOfTimeError(asyncio.CancelledError):
        pass

    with pytest.raises(OutOfTimeError), cancellations_checked("own"):
        raise OutOfTimeError


async def test_cancellation_of_the_task_stays_one() -> None:
    """Its caller waits for it."""

    async def work() -> None:
        with cancellations_checked("own"):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_time_that_is_over_stays_a_timeout() -> None:
    """It cancels the task, and takes that back."""

    async def work() -> None:
        async with asyncio.timeout(0):
            with cancellations_checked("own"):
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await work()


class _RequestError(Exception):
    """An error whose text is made of what cannot be changed, as aiohttp's with an address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return f"403 for {self.url}"


@pytest.fixture
async def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """Look up the secret of a source."""
    monkeypatch.setenv("FEED_KEY", "s3cret/key of a feed")
    return await resolve_secret("FEED_KEY", "own")


def test_no_secret_leaves_in_the_text_of_an_error(secret: str) -> None:
    """Its class and traceback stay; the failed watermark and Prefect's log get that text."""
    error = ValueError(f"refused with {secret}", f"?key={quote(secret, safe='')}")
    error.add_note(f"sent {secret}")
    with pytest.raises(ValueError, match="refused") as caught, errors_fit_to_show("own"):
        raise error
    shown = "".join(traceback.format_exception(caught.value, limit=0))
    assert "('refused with **********', '?key=**********')\nsent **********" in shown


def test_error_that_quotes_a_secret_for_good_is_told_by_another(secret: str) -> None:
    """The original is not even in the traceback."""
    with pytest.raises(SourceError) as caught, errors_fit_to_show("own"):
        raise _RequestError(f"https://feed.example/?key={quote_plus(secret)}")
    shown = "".join(traceback.format_exception(caught.value))
    assert "_RequestError: 403 for https://feed.example/?key=**********" in shown
    assert "s3cret" not in shown


def test_error_stays_without_the_cause_that_quotes_a_secret(secret: str) -> None:
    """Its class decides what the caller does, such as a second attempt."""
    with pytest.raises(TimeoutError) as caught, errors_fit_to_show("own"):
        raise TimeoutError("too slow") from _RequestError(secret)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_group_of_errors_shows_no_secret(secret: str) -> None:
    """A traceback prints each of its members."""
    with pytest.raises(SourceError) as caught, errors_fit_to_show("own"):
        raise ExceptionGroup("two failed", [ValueError("a"), _RequestError(secret)])
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_group_that_is_no_exception_ends_as_one(secret: str) -> None:
    """A generator that is closed inside of a task group raises such a group."""
    group = BaseExceptionGroup("two", [GeneratorExit(), ValueError(secret)])
    named = pytest.raises(SourceError, match="BaseExceptionGroup: two")
    with named as caught, errors_fit_to_show("own"):
        raise group
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_causes_without_end_show_no_secret(secret: str) -> None:
    """Each of many requests fails for a cause, which is its context, too."""

    def failed(depth: int) -> Exception:
        error = RuntimeError(f"{depth}: {secret}")
        if depth:
            error.__cause__ = error.__context__ = failed(depth - 1)
        return error

    with pytest.raises(ExceptionGroup) as caught, errors_fit_to_show("own"):
        raise ExceptionGroup("all failed", [failed(9) for _ in range(30)])
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@dataclass(frozen=True)
class _FrozenError(Exception):
    """An error to which nothing can be assigned, not even a note."""

    text: str


def _noted(secret: str) -> Exception:
    error = _FrozenError("refused")
    vars(error)["__notes__"] = [f"sent {secret}"]
    return error


class _OwnError(SourceError):
    """An error of a source of one's own, with a text of its own."""

    def __str__(self) -> str:
        return f"refused {self.source_id}"


@pytest.mark.parametrize(
    "error",
    [
        _noted,
        lambda secret: SyntaxError("odd", ("answer", 1, 1, f"key = {secret}")),
        lambda secret: _OwnError("refused", secret),
    ],
    ids=["note", "line", "subclass"],
)
def test_no_part_of_an_error_shows_a_secret(error: Any, secret: str) -> None:
    """A traceback prints its notes, and the line of a syntax error."""
    with pytest.raises((SourceError, SyntaxError)) as caught, errors_fit_to_show("own"):
        raise error(secret)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_error_of_the_package_keeps_its_class_and_its_facts(secret: str) -> None:
    """Retries and the command's exit code depend on them."""
    with pytest.raises(StorageResponseError) as caught, errors_fit_to_show("own"):
        raise StorageResponseError(f"answered 503: {secret}", 503)
    assert (str(caught.value), caught.value.transient) == ("answered 503: **********", True)
    assert secret not in repr(vars(caught.value))


async def test_reject_that_quotes_a_secret_shows_none(secret: str) -> None:
    """Its reason goes to the log, the ledger, the metrics and the quarantine, its text there."""
    source = ScriptedSource([Page([record("1", 1)], [Reject.of(_RequestError(secret), [secret])])])
    sink, storage = RememberingSink(), ScriptedStorage()
    report = await run(source, sink, storage, run_id="R")

    assert report.reasons == {"403 for **********": 1}
    assert sink.rejects == {("feed", "403 for **********", '["**********"]')}
    assert "s3cret" not in repr(storage.updates)


@pytest.mark.parametrize(
    "encoded",
    [
        lambda key: str(URL("http://h/").with_query(key=key)),
        lambda key: re.sub("%..", lambda found: found[0].lower(), quote(key, safe="")),
        lambda key: json.dumps(json.dumps(key)),
        lambda key: json.dumps(key).replace("/", r"\/"),
        lambda key: repr({"key": key}),
        lambda key: repr(key.encode()),
        lambda key: html.escape(key),
        lambda key: f"basic {b64encode(f'me:{key}'.encode()).decode()}",
    ],
    ids=["yarl", "lower", "json twice", "php", "repr", "bytes", "html", "basic"],
)
async def test_key_is_masked_in_each_encoding_in_which_a_text_repeats_it(
    encoded: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays to be read."""
    monkeypatch.setenv("FEED_KEY", "Pa$$/it's a\"word+1<")
    key = await resolve_secret("FEED_KEY", "own")
    shown = without_secrets(encoded(key))
    assert "**********" in shown
    assert not re.search("Pa|word|1", shown)


async def test_password_is_shown_in_no_header_either(secret: str) -> None:
    """Errors of aiohttp quote a request with all its headers; other headers stay readable."""
    basic = b64encode(f"me:{secret}".encode()).decode()
    other = b64encode(b"me:another").decode()
    shown = re.escape(f"Basic ********** Basic {other} Basic words")
    with pytest.raises(ValueError, match=shown), errors_fit_to_show("own"):
        raise ValueError(f"Basic {basic} Basic {other} Basic words and more")


async def test_secret_is_none_in_a_repr_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyError has the repr of its key for a text."""
    monkeypatch.setenv("FEED_KEY", "it's a \"key\\")
    secret = await resolve_secret("FEED_KEY", "own")
    assert Reject.of(KeyError(secret), "").reason == "'**********'"


@pytest.mark.parametrize("secret", ['quo"ted', r"back\slash"])
async def test_secret_is_none_in_json_either(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a character that JSON escapes, its text has two."""
    monkeypatch.setenv("FEED_KEY", secret)
    await resolve_secret("FEED_KEY", "own")
    assert Reject.of("no id", {"key": secret}).raw == '{"key":"**********"}'


@pytest.mark.parametrize("word", ["a", "feed", "*****", "*******"])
async def test_short_secret_does_not_garble_every_text(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text has it by chance, and would be no help."""
    monkeypatch.setenv("FEED_KEY", word)
    await resolve_secret("FEED_KEY", "own")
    with pytest.raises(ValueError, match=re.escape(f"a feed {word}")), errors_fit_to_show("own"):
        raise ValueError(f"a feed {word}")


async def test_password_in_a_secret_address_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver quotes it alone."""
    monkeypatch.setenv("FEED_URL", "postgresql://u:pw1234@h/db")
    await resolve_secret("FEED_URL", "own")
    with pytest.raises(ValueError, match=r"password \*+ is wrong"), errors_fit_to_show("own"):
        raise ValueError("password pw1234 is wrong")
