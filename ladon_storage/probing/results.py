"""The result of a trial: records, rejects and requests, as tables and as JSON."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, computed_field

from ladon_storage.collection.records import Completeness

_FROZEN = ConfigDict(frozen=True)


class TrialRecord(BaseModel):
    """A record as it would be stored; a long payload is truncated."""

    model_config = _FROZEN

    record_id: str
    timestamp: datetime
    version: str
    payload: str


class TrialReject(BaseModel):
    """An item that would go into the quarantine, and the reason."""

    model_config = _FROZEN

    reason: str
    record_id: str | None
    raw: str


class TrialRequest(BaseModel):
    """A request of a trial, without secrets; without a status, it was not answered."""

    model_config = _FROZEN

    method: str
    url: str
    body: str | None = None
    status: int | None = None
    bytes: int | None = None


class Trial(BaseModel):
    """The result of a trial.

    Args:
        source_id: The source.
        kind: Its kind, or the name of its class.
        records: The first records.
        rejects: The first unusable items.
        delivered: The number of items that came, usable or not.
        rejected: The number of unusable ones.
        reasons: The count of each reason, the most frequent first.
        requests: The requests that were made.
        next_request: The next request of a run; ``None``: there is none.
        is_finished: Whether the source was read to its end.
        paging: The next step of the pagination, in a sentence.
        completeness: The proof of the end, if the source was read to it.
        total: The number of items that the source states.
        warnings: Points to check before a run.
        error: The reason why the source could not be read; ``None``: it could.
        seconds: The duration of the trial.
    """

    model_config = _FROZEN

    source_id: str
    kind: str
    records: tuple[TrialRecord, ...] = ()
    rejects: tuple[TrialReject, ...] = ()
    delivered: int = 0
    rejected: int = 0
    reasons: dict[str, int] = {}
    requests: tuple[TrialRequest, ...] = ()
    next_request: TrialRequest | None = None
    is_finished: bool = False
    paging: str = ""
    completeness: Completeness | None = None
    total: int | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    seconds: float = 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether the source could be read, and has a usable record."""
        return self.error is None and self.delivered > self.rejected
