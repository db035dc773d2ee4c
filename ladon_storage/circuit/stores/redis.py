"""Circuits in Redis, for workers on many hosts; needs the extra ``redis``.

- The time is the server's: a script reads it with the record, so the hosts' clocks may differ.
- A separate thread talks to the server, and a caller waits for it only for a bounded time. A name
  server that does not answer has no timeout, and a caller is an event loop.
- The URL may hold a password. It is kept here only, and no error of the driver is quoted.
"""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from yarl import URL

from ladon_storage.circuit.stores import VersionedText, new_tag
from ladon_storage.errors import CircuitStoreError, ConfigurationError

WAIT_SECONDS = 0.02
PREFIX = "ladon:circuit:"
# A circuit that is not read for this long expires, which means closed.
KEPT_SECONDS = 7 * 24 * 3600

_READ = """
local now = redis.call('TIME')
local kept = redis.call('HMGET', KEYS[1], 'tag', 'record')
return {now[1], now[2], kept[1] or '0', kept[2] or ''}
"""
_SWAP = """
if (redis.call('HGET', KEYS[1], 'tag') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'tag', ARGV[2], 'record', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 1
"""

_UNKNOWN = re.compile(r"unexpected keyword argument '([^']*)'")

Call = Callable[[], Any]


class RedisStore:
    """A store of circuits in the Redis at ``url``.

    Args:
        url: Address as redis-py takes it: ``redis://``, ``rediss://`` or ``unix://``, with
            ``?socket_timeout=0.2`` to wait longer.
        seconds: The longest wait for an answer, unless the address says another.

    Raises:
        ConfigurationError: redis-py is not installed, or does not understand the address or an
            option of it.
    """

    def __init__(self, url: str, seconds: float = WAIT_SECONDS) -> None:
        try:
            import redis
        except ModuleNotFoundError:
            raise ConfigurationError(
                "A circuit in Redis needs redis-py; install ladon-storage[redis]."
            ) from None
        try:
            parsed = URL(url)
            self._seconds = float(parsed.query.get("socket_timeout", seconds))
            bare = parsed.with_user(None).with_query(None) if parsed.host else parsed.with_query({})
            unknown = _unknown_option(redis.ConnectionPool.from_url(url))
        except (ValueError, TypeError, AttributeError, redis.RedisError):
            self._seconds, unknown = math.nan, None
        if unknown and "@" not in parsed.query_string:  # which may be the end of a password
            raise ConfigurationError(
                f"The address of a circuit in Redis has the unknown option {unknown!r}; leave it "
                "out, or write socket_timeout to wait longer."
            )
        if unknown or not 0 < self._seconds < math.inf:
            raise ConfigurationError(
                "The address of a circuit in Redis should look like redis://redis.example:6379/0; "
                "set another."
            )
        self.place = str(bare)
        self._url = url
        self._process = 0
        self._client: Any = None
        self._asked: SimpleQueue[tuple[Call, Future[Any]] | None] = SimpleQueue()
        self._last: Future[Any] | None = None

    def read(self, key: str) -> VersionedText:
        """Return the text stored under ``key``.

        Raises:
            CircuitStoreError: The server does not answer, or not soon enough.
        """

        def read() -> VersionedText:
            seconds, microseconds, tag, text = self._client.eval(_READ, 1, PREFIX + key)
            return VersionedText(int(seconds) + int(microseconds) / 1e6, int(tag), text)

        answer: VersionedText = self._run(read)
        return answer

    def compare_and_set(self, key: str, tag: int, text: str) -> bool:
        """Store ``text`` if the stored one still has ``tag``; return whether it had.

        Raises:
            CircuitStoreError: The server does not answer, not soon enough, or is read-only.
        """
        values = (str(tag), str(new_tag()), text, str(KEPT_SECONDS))
        return bool(self._run(lambda: self._client.eval(_SWAP, 1, PREFIX + key, *values)))

    def close(self) -> None:
        """Let the thread close its connection and end; the next call starts another."""
        if self._process == os.getpid():
            self._asked.put(None)
        self._process = 0

    def __del__(self) -> None:
        if hasattr(self, "_asked"):
            self.close()

    def _run(self, call: Call) -> Any:
        """Let the thread make ``call``, and return its result if it comes soon."""
        if self._process != os.getpid():
            self._start()
        problem: str | None = None
        if self._last is not None and not self._last.done():
            problem = "an earlier question is not answered yet"
        else:
            self._last = Future()
            self._asked.put((call, self._last))
            try:
                return self._last.result(self._seconds)
            except TimeoutError:
                problem = f"no answer within {self._seconds:g} s"
            except Exception as error:
                # Not chained: the driver quotes its arguments.
                problem = type(error).__name__
        raise CircuitStoreError(
            f"The circuit store {self.place} cannot be used ({problem}); see whether it runs, and "
            "whether this user may write."
        )

    def _start(self) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._process = os.getpid()
        self._last = None
        self._asked = SimpleQueue()
        # A late response still proves that the connection works.
        timeout = max(self._seconds, 1.0)
        self._client = redis.Redis.from_url(
            self._url,
            decode_responses=True,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            max_connections=1,
        )
        # Not a method: it must not keep the store alive.
        threading.Thread(
            target=_answer, args=(self._asked, self._client), name="ladon-circuit", daemon=True
        ).start()


def _unknown_option(pool: Any) -> str | None:
    """Return an option of the address that a connection does not take; none is opened."""
    try:
        pool.make_connection()
    except TypeError as error:
        if found := _UNKNOWN.search(str(error)):
            return found[1]
        raise
    return None


def _answer(asked: SimpleQueue[tuple[Call, Future[Any]] | None], client: Any) -> None:
    while (question := asked.get()) is not None:
        call, answer = question
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)
        del question, call, answer
    client.close()
