"""The Storage Service's contract: the watermark, and the rules of changing it.

Client, in-memory client and embedded service share this module, so each rule exists once.

- A response may lack fields and may have unknown fields. Both are kept as they came.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
)

from ladon_storage.errors import WatermarkConflictError, WatermarkInFutureError
from ladon_storage.values import (
    NUMBER,
    ErrorText,
    ShortText,
    StoredLedger,
    Timestamp,
    fitting_error,
    fitting_ledger,
    instant_of,
)

RUN_LEASE = timedelta(minutes=1)
"""The time for which a run holds its source after its last write, unless it sets another one."""

EMPTY_WATERMARK = datetime.min.replace(tzinfo=UTC)
"""The timestamp of a success that found nothing yet, because the contract requires one.

No record can be older, so this timestamp skips nothing that appears later; any other one could,
even the first of 1970. A reader sees *never collected* instead: see `collected_up_to`.
"""

MAX_AHEAD = timedelta(days=1)
"""The most by which a watermark may be ahead of the service's own time when it is written."""

HONEST_SKEW = timedelta(minutes=1)
"""The most by which a watermark may be ahead of a clock before one of the two counts as wrong."""


class WatermarkStatus(StrEnum):
    """The outcome of a source's last run."""

    SUCCESS = "success"
    FAILED = "failed"
    RUNNING = "running"


class Watermark(BaseModel):
    """The timestamp up to which a source is durably collected, and the outcome of its last run.

    Frozen. It can also be read like the dictionary that plain clients returned:
    ``watermark["status"]`` and ``watermark.get("error_message")`` give the JSON values of the
    fields that the service sent, with timestamps as ISO 8601 text. A field that it did not send is
    a ``KeyError``, or the default.

    >>> watermark = Watermark(source_id="kev", status="success",
    ...                       last_successful_timestamp="2024-01-01T12:00:00Z")
    >>> watermark.last_successful_timestamp
    datetime.datetime(2024, 1, 1, 12, 0, tzinfo=datetime.timezone.utc)
    >>> watermark["last_successful_timestamp"], watermark.get("error_message", "none")
    ('2024-01-01T12:00:00+00:00', 'none')
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    source_id: str
    last_successful_timestamp: Timestamp | None = None
    last_run_timestamp: Timestamp | None = None
    # A status of a later service is kept as text: it is no reason to fail a collection.
    status: Annotated[WatermarkStatus | str, Field(union_mode="left_to_right")] | None = None
    error_message: str | None = None
    records_collected: int | None = None
    # The embedded service's own: the run that wrote it last; how long that run, while it is
    # running, holds its source after `last_run_timestamp`; and the last ledger that a run wrote.
    run_id: str | None = None
    lease_seconds: float | None = None
    ledger: dict[str, Any] | None = None

    @property
    def etag(self) -> str | None:
        """The version tag of the response, or ``None`` from a service without version tags."""
        # Pydantic copies, compares and pickles its private attributes in this place. One that
        # is declared is set up by a function in Python, which costs half as much as all fields.
        return (self.__pydantic_private__ or {}).get("etag")

    @property
    def answered_at(self) -> datetime | None:
        """The service's time of its response, or ``None`` where the response does not give it.

        It belongs to the response and not to the watermark: it is not in the JSON, and not
        compared.
        """
        told: str | datetime | None = self.__dict__.get(_ANSWERED_AT)
        return _told_time(told) if isinstance(told, str) else told

    @property
    def found_nothing(self) -> bool:
        """Whether the source was collected and had nothing yet: `EMPTY_WATERMARK` on the wire."""
        return _FOUND_NOTHING in self.__dict__

    @classmethod
    def from_answer(
        cls, body: bytes | str, etag: str | None, answered_at: str | datetime | None = None
    ) -> Self:
        """Return the watermark of a response's JSON, to be handed to a reader.

        Args:
            body: The JSON.
            etag: The version tag of the response.
            answered_at: The service's time, as a header of the response gives it.

        Raises:
            ValidationError: The JSON is no watermark.
        """
        # `model_validate_json` calls this too, after looking at options that are not used here.
        watermark: Self = cls.__pydantic_validator__.validate_json(body)
        if etag is not None:
            watermark.tag(etag)
        watermark._read(answered_at)
        return watermark

    def as_answered(self, answered_at: datetime) -> Self:
        """Return this watermark in the form in which `from_answer` hands it to a reader."""
        watermark = self.__copy__()
        watermark._read(answered_at)  # noqa: SLF001 - of its own class
        return watermark

    def _read(self, answered_at: str | datetime | None) -> None:
        # Next to the fields, where pydantic copies and pickles, and neither compares nor dumps.
        # Read only when asked for: few are.
        if answered_at is not None:
            self.__dict__[_ANSWERED_AT] = answered_at
        if self.last_successful_timestamp == EMPTY_WATERMARK:
            self.__dict__[_FOUND_NOTHING] = True
            self.__dict__["last_successful_timestamp"] = None

    @classmethod
    def trusted(
        cls,
        etag: str | None,
        lease_seconds: float | None = None,
        ledger: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Self:
        """Return the watermark of fields that were checked already, with a version tag.

        It equals that of `tagged`, and takes a sixth of its time.

        Args:
            etag: The version tag.
            lease_seconds: The length of a lease; ``None``: the field is not set.
            ledger: The ledger; ``None``: the field is not set.
            fields: All other fields, in their order.
        """
        made = cls.__new__(cls)
        named = set(fields)
        if lease_seconds is not None:
            named.add("lease_seconds")
        if ledger is not None:
            named.add("ledger")
        fields["lease_seconds"], fields["ledger"] = lease_seconds, ledger
        object.__setattr__(made, "__dict__", fields)
        object.__setattr__(made, "__pydantic_fields_set__", named)
        object.__setattr__(made, "__pydantic_extra__", {})
        made.tag(etag)
        return made

    @classmethod
    def tagged(cls, etag: str | None, **fields: Any) -> Self:
        """Return the watermark of these fields, with a version tag."""
        watermark = cls(**fields)
        watermark.tag(etag)
        return watermark

    def with_etag(self, etag: str | None) -> Self:
        """Return the same watermark with the version tag of its response."""
        # As pydantic copies it, in half of the time.
        made = self.__class__.__new__(self.__class__)
        object.__setattr__(made, "__dict__", {**self.__dict__})
        object.__setattr__(made, "__pydantic_fields_set__", set(self.__pydantic_fields_set__))
        object.__setattr__(made, "__pydantic_extra__", dict(self.__pydantic_extra__ or {}))
        made.tag(etag)
        return made

    def tag(self, etag: str | None) -> None:
        """Set the version tag of a watermark that is not handed out yet."""
        # Past pydantic, as `etag` reads it.
        private = None if etag is None else {"etag": etag}
        object.__setattr__(self, "__pydantic_private__", private)

    def __getitem__(self, key: str) -> Any:
        return self.model_dump(mode="json", exclude_unset=True)[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return the JSON value of a field that the service sent, or ``default``."""
        return self.model_dump(mode="json", exclude_unset=True).get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self.model_fields_set

    def keys(self) -> list[str]:
        """Return the names of the fields that the service sent, as ``dict()`` needs them."""
        return list(self.model_dump(mode="json", exclude_unset=True))


def _told_time(text: str) -> datetime | None:
    """Return the timestamp of an HTTP date, or of an RFC 3339 text with its offset."""
    if not text[:1].isdigit():
        return instant_of(text)
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if told.tzinfo is None else told.astimezone(UTC)


SERVICE_TIME = "X-Storage-Time"
"""The header in which the embedded service sends its time; no gateway rewrites it."""

REQUEST_ID = "X-Request-ID"
"""The header with the id of a request, which is in the logs of both sides."""

BATCH = "X-Storage-Batch"
"""The header in which the embedded service sends how many requests one batch may have."""

_ANSWERED_AT, _FOUND_NOTHING = "_answered_at", "_found_nothing"


def collected_up_to(watermark: Watermark | None) -> datetime | None:
    """Return the timestamp up to which a source is durably collected; ``None``: never collected.

    To a reader, a source that was collected and had nothing yet was never collected.
    """
    return None if watermark is None else meant(watermark.last_successful_timestamp)


def meant(success: datetime | None) -> datetime | None:
    """Return a success's timestamp for a reader: ``None`` in place of `EMPTY_WATERMARK`."""
    return None if success == EMPTY_WATERMARK else success


def is_ahead(success: datetime | None, now: datetime) -> bool:
    """Return whether a watermark is in the future, which means that it or the clock is wrong."""
    return success is not None and success > now + HONEST_SKEW


def age_seconds(success: datetime | None, now: datetime) -> float:
    """Return by how many seconds a watermark is behind ``now``, a time of the judging clock.

    The age is infinite where the source was never collected, and where the watermark is in the
    future: neither is fresh.

    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> [age_seconds(noon + timedelta(hours=by), noon) for by in (-1, 1)]
    [3600.0, inf]
    """
    success = meant(success)
    if success is None or is_ahead(success, now):
        return math.inf
    return max(0.0, (now - success).total_seconds())


class WatermarkUpdate(BaseModel):
    """The body of a PUT: the base contract's three fields, and the embedded service's four."""

    model_config = ConfigDict(frozen=True)

    timestamp: Timestamp
    status: WatermarkStatus = WatermarkStatus.SUCCESS
    error_message: ErrorText | None = None
    records_collected: Annotated[int, Field(ge=0, le=2**53), NUMBER] | None = None
    run_id: ShortText | None = None
    # Only of a run that is running.
    lease_seconds: Annotated[float, Field(gt=0, le=10**9), NUMBER] | None = None
    ledger: StoredLedger | None = None

    @classmethod
    def of(
        cls,
        timestamp: datetime,
        status: str,
        error_message: str | None = None,
        *,
        records_collected: int | None = None,
        run_id: str | None = None,
        lease: timedelta | None = None,
        ledger: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the write of a run's outcome, from its writer's arguments.

        ``error_message`` and ``ledger`` are cut and replaced until they can be stored, even a huge
        traceback or a file name that is no Unicode: an outcome must not go unrecorded.

        Raises:
            TypeError: ``timestamp`` is no datetime.
            ValueError: Another argument makes no sense.
        """
        if not isinstance(timestamp, datetime):
            raise TypeError(f"timestamp should be a datetime, not {type(timestamp).__name__}")
        made = cls(
            timestamp=timestamp,
            status=WatermarkStatus(status),
            error_message=None if error_message is None else fitting_error(error_message),
            records_collected=records_collected,
            run_id=run_id,
            lease_seconds=None if lease is None else lease.total_seconds(),
            ledger=None if isinstance(ledger, Mapping) else ledger,
        )
        if isinstance(ledger, Mapping):
            # It fits: the check of the field would write and parse it again.
            made.__dict__["ledger"] = fitting_ledger(ledger)
        return made

    def with_error(self, error_message: str) -> Self:
        """Return the same write with another reason, cut as `of` cuts it."""
        return self.model_copy(update={"error_message": fitting_error(error_message)})


BASE_FIELDS = frozenset({"timestamp", "status", "error_message"})
"""The fields of a `WatermarkUpdate` that every service knows."""


def _stripped(text: str) -> str:
    """Return a text without blanks around it; its length was that of what was sent."""
    if stripped := text.strip():
        return stripped
    raise ValueError("it is blank")


Reason = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_stripped)]
"""An operator's reason."""


class WatermarkReset(BaseModel):
    """The body of a reset: an operator moves a watermark to any timestamp, and says why."""

    model_config = ConfigDict(frozen=True)

    timestamp: Timestamp
    reason: Reason
    actor: ShortText | None = None


class WatermarkDelete(BaseModel):
    """The body of an operator's deletion: its reason, and its author."""

    model_config = ConfigDict(frozen=True)

    reason: Reason
    actor: ShortText | None = None


class ChangeAction(StrEnum):
    """The kind of a watermark's change."""

    PUT = "put"
    RESET = "reset"
    DELETE = "delete"


IMPORTED = "imported from another storage"
"""How the reason of a reset begins by which an import takes a watermark over."""


class WatermarkChange(BaseModel):
    """One line of a watermark's history: the change, its author, its time, and both timestamps.

    ``version`` is the watermark's version after the change, and no other change ever has the same.
    ``timestamp`` is the one that the writer asked for. ``from_timestamp`` and ``to_timestamp`` are
    ``last_successful_timestamp`` before and after, and ``None`` where nothing was collected.
    ``ledger`` is the one that a run wrote with its outcome.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    source_id: str
    at: Timestamp
    action: ChangeAction
    actor: str | None
    run_id: str | None
    status: WatermarkStatus | None
    timestamp: Timestamp | None
    from_timestamp: Timestamp | None
    to_timestamp: Timestamp | None
    records_collected: int | None
    error_message: str | None
    reason: str | None
    ledger: dict[str, Any] | None = None

    @property
    def is_by_hand(self) -> bool:
        """Whether an operator chose this timestamp; an import only repeats another storage's."""
        return self.action is ChangeAction.RESET and not (self.reason or "").startswith(IMPORTED)


class WatermarkPage(BaseModel):
    """One page of the list, by ``source_id``; ``next`` is the cursor of the page after it."""

    model_config = ConfigDict(frozen=True)

    watermarks: list[Watermark]
    next: str | None


class HistoryPage(BaseModel):
    """One page of a history, latest first; ``next`` is the cursor of the older page."""

    model_config = ConfigDict(frozen=True)

    changes: list[WatermarkChange]
    next: int | None


_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True)
class Precondition:
    """The condition of a write on the stored version, as RFC 9110 defines it.

    Without arguments it admits any version.

    Args:
        if_match: The version tag that must be stored, as an ``etag`` gives it; ``*`` is any, and
            one of several is enough.
        if_none_match: Whether no watermark may be stored yet.

    >>> Precondition.unchanged(None)
    Precondition(if_match=None, if_none_match=True)
    """

    if_match: str | None = None
    if_none_match: bool = False

    @classmethod
    def unchanged(cls, read: Watermark | None) -> Self:
        """Return the condition that nothing was written since ``read``; ``None``: there was none.

        A service without version tags cannot check it: then the write has no condition.
        """
        return cls(if_none_match=True) if read is None else cls(read.etag)

    def admits(self, etag: str | None) -> bool:
        """Return whether ``if_match`` admits the stored version; ``None``: there is none."""
        if self.if_match is None:
            return True
        if etag is None:
            return False
        return self.if_match in ("*", etag) or etag in _TAG.findall(self.if_match)


UNCONDITIONAL = Precondition()
"""The precondition of a write that replaces any version."""


def check_precondition(
    stored: Watermark | None, source_id: str, precondition: Precondition
) -> None:
    """Refuse a change of any kind when the stored version is not the one that its writer read.

    Raises:
        WatermarkConflictError: With status 412.
    """
    if precondition is UNCONDITIONAL:
        return
    etag = stored.etag if stored else None
    found = "at version " + etag.strip('"') if etag else "not stored"
    who = f"run {stored.run_id!r}" if stored and stored.run_id else "another run"
    if not precondition.admits(etag):
        expected = (precondition.if_match or "").replace('"', "")
        raise WatermarkConflictError(
            f"Watermark {source_id!r} is {found}, not at version {expected}: {who} was "
            "faster; read it again before writing.",
            status=412,
        )
    if precondition.if_none_match and stored is not None:
        raise WatermarkConflictError(
            f"Watermark {source_id!r} is stored already, {found}: {who} was faster; "
            "read it again before writing.",
            status=412,
        )


def apply_update(
    stored: Watermark | None,
    source_id: str,
    update: WatermarkUpdate,
    now: datetime,
    precondition: Precondition = UNCONDITIONAL,
) -> Watermark:
    """Return the watermark after ``update``: the one rule of every write.

    A success moves ``last_successful_timestamp``; ``failed`` and ``running`` never do. The number
    of records and the ledger are those of the last run that wrote one. No success is further ahead
    of the service than `MAX_AHEAD`.

    Args:
        stored: The stored watermark, with its version tag; ``None`` where there is none.
        source_id: The source.
        update: The write.
        now: The service's time, which becomes ``last_run_timestamp``.
        precondition: The version that the writer read; the write is refused at any other.

    Returns:
        The new watermark, without a version tag yet.

    Raises:
        WatermarkConflictError: With status 412 another version is stored than the writer read;
            with 409 the update is a success older than the stored one, which is not ahead of the
            service, or by no more than `HONEST_SKEW` if the writer did not read it.
        WatermarkInFutureError: The update is a success beyond now plus `MAX_AHEAD`.
    """
    check_precondition(stored, source_id, precondition)
    before = stored.last_successful_timestamp if stored else None
    after = before
    if update.status is WatermarkStatus.SUCCESS:
        check_not_in_future(source_id, update.timestamp, now)
        if before is not None and update.timestamp < before:
            # A watermark in the future is wrong, and may be corrected. Of two clocks either may be
            # a moment ahead: up to then only who has read it may.
            has_read = precondition.if_match not in (None, "*")
            is_wrong = before > now if has_read else is_ahead(before, now)
            if not is_wrong:
                raise WatermarkConflictError(
                    f"Watermark {source_id!r} is at {before.isoformat()}, later than "
                    f"{update.timestamp.isoformat()}; an operator can move it back with a reset.",
                    status=409,
                )
        after = update.timestamp
    records, ledger = update.records_collected, update.ledger
    if records is None:
        records = stored.records_collected if stored else 0
    if ledger is None:
        ledger = stored.ledger if stored else None
    is_running = update.status is WatermarkStatus.RUNNING
    return Watermark.trusted(
        None,
        source_id=source_id,
        last_successful_timestamp=after,
        last_run_timestamp=now,
        status=update.status,
        error_message=update.error_message,
        records_collected=records,
        run_id=update.run_id,
        lease_seconds=update.lease_seconds if is_running else None,
        ledger=ledger,
    )


def given(**additions: Any) -> dict[str, Any]:
    """Return the additions that are set: a response omits the others, even as null."""
    return {name: value for name, value in additions.items() if value is not None}


def check_not_in_future(source_id: str, timestamp: datetime, now: datetime) -> None:
    """Refuse to move a watermark further ahead of the service's time than `MAX_AHEAD`.

    Raises:
        WatermarkInFutureError: The watermark would be further ahead.
    """
    if timestamp > _furthest(now):
        raise WatermarkInFutureError(
            f"Watermark {source_id!r} cannot be moved to {timestamp.isoformat()}, more than a day "
            f"after the service's time, {now.isoformat()}; correct the source's times, or the "
            "clock that is wrong.",
            status=422,
        )


def _furthest(now: datetime) -> datetime:
    try:
        return now + MAX_AHEAD
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
