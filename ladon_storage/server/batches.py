"""Several requests of watermarks in one: an addition for programs with very many sources.

- The requests of a batch are independent of each other. Each one has the answer that it would have
  alone, with a status and a version tag of its own, and none has an order among the others.
- A batch of which any part is malformed is refused as a whole, before anything is stored.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from ladon_storage.models import Precondition, Watermark, WatermarkUpdate
from ladon_storage.server.requests import TAGS
from ladon_storage.server.responses import Problem
from ladon_storage.values import SourceId

MAX_REQUESTS = 100
"""The most requests of one batch."""

_IfMatch = Annotated[str, Field(pattern=rf"^(?:\*|{TAGS})$")]


class BatchRequest(BaseModel):
    """One request of a batch: the write of ``update``, or a read where there is none."""

    # A misspelt condition that is ignored would overwrite another run's watermark.
    model_config = ConfigDict(frozen=True, extra="forbid")

    source_id: SourceId
    update: WatermarkUpdate | None = None
    if_match: _IfMatch | None = None
    if_none_match: StrictBool = False

    @property
    def method(self) -> str:
        """The method of the same request alone."""
        return "GET" if self.update is None else "PUT"

    @property
    def precondition(self) -> Precondition:
        """The condition of the write."""
        return Precondition(self.if_match, self.if_none_match)


class Batch(BaseModel):
    """The body of a batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests: Annotated[list[BatchRequest], Field(min_length=1, max_length=MAX_REQUESTS)]


class BatchAnswer(BaseModel):
    """The answer to one request of a batch; ``body`` is that of the same request alone."""

    source_id: str
    status: int
    etag: str | None
    body: Watermark | Problem


class BatchAnswers(BaseModel):
    """The answers to a batch, in the order of its requests."""

    answers: list[BatchAnswer]
