"""The tables of ``ladon.toml`` as models: the meaning and the valid values of each key."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ladon_storage.collection.credentials import SecretName
from ladon_storage.collection.durations import Seconds
from ladon_storage.collection.protocols import Limits
from ladon_storage.collection.standby import WhenBusy
from ladon_storage.sources.timestamps import ZoneName

NOT_DEPLOYED = "/%&<>"
"""The characters that the name of a Prefect deployment must not have."""

_STRICT = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
_ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
# Names that Prefect's cron does not know, but the checking library here does.
_FOREIGN = re.compile(r"\dL|\dW|LW", re.IGNORECASE)


def check_cron(value: str) -> str:
    """Return ``value`` if it is a cron expression of five fields.

    Raises:
        ValueError: It is not.
    """
    if value in _ALIASES:
        return value
    example = "such as 0 6 * * * for each day at six"
    if len(value.split()) != 5:
        raise ValueError(f"should have five fields, {example}")
    try:
        CronSim(value, datetime.now(UTC))
    except CronSimError as error:
        raise ValueError(f"is no cron expression ({error}); write one {example}") from None
    if _FOREIGN.search(value):
        raise ValueError(f"has L or W where Prefect knows none; write one {example}")
    return value


class Schedule(BaseModel):
    """The schedule of a source's deployment, in Prefect's terms.

    >>> Schedule(cron="0 6 * * *").prefect()
    {'cron': '0 6 * * *', 'timezone': 'UTC'}
    """

    model_config = _STRICT

    cron: Annotated[str, AfterValidator(check_cron)] | None = Field(
        None, description="Cron expression of five fields, such as `0 6 * * *`."
    )
    interval: Annotated[Seconds, Field(gt=timedelta(0))] | None = Field(
        None, description="Time between two runs: seconds, or an ISO 8601 duration."
    )
    anchor_date: datetime | None = Field(
        None,
        description="A time from which the intervals are counted; without an offset, in "
        "`timezone`. Only with `interval`.",
    )
    timezone: ZoneName = Field("UTC", description="Time zone of the schedule, by its IANA name.")
    active: bool = Field(
        True,
        description="Whether the schedule runs. `false` alone overrides a default schedule. If "
        "empty, a schedule that was paused in the UI stays so.",
    )

    @model_validator(mode="after")
    def _have_one_rhythm(self) -> Self:
        given = [name for name in ("cron", "interval") if getattr(self, name) is not None]
        if len(given) == 2:
            raise ValueError("has cron and interval; remove one of them")
        if not given and self.active:
            raise ValueError("has neither cron nor interval; set one of them")
        if self.anchor_date is not None and "interval" not in given:
            raise ValueError("has an anchor_date and no interval; remove it")
        return self

    def prefect(self) -> dict[str, Any] | None:
        """Return it as an entry of ``schedules`` in a ``prefect.yaml``; ``None``: there is none."""
        if self.cron is None and self.interval is None:
            return None
        anchor = self.anchor_date
        if anchor is not None and anchor.tzinfo is None:  # Prefect would read it in UTC
            # With its offset, as the deployment has it that this one is compared with.
            local = anchor.replace(tzinfo=ZoneInfo(self.timezone))
            anchor = datetime.fromisoformat(local.isoformat())
        entry: dict[str, Any] = {"cron": self.cron, "anchor_date": anchor}
        if self.interval is not None:
            entry["interval"] = self.interval.total_seconds()
        entry["timezone"] = self.timezone
        if "active" in self.model_fields_set:
            entry["active"] = self.active
        return {name: value for name, value in entry.items() if value is not None}


class Freshness(BaseModel):
    """The age of a source's watermark beyond which the freshness check fails."""

    model_config = _STRICT

    max_age_hours: float = Field(
        gt=0,
        le=10**9,
        allow_inf_nan=False,
        description="Age of the watermark in hours at which it is stale.",
    )


class Reconciling(BaseModel):
    """The deployment that reads a source again, and stores what the regular runs missed."""

    model_config = _STRICT

    active: bool = Field(True, description="Whether there is such a deployment.")
    last_days: Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)] | None = Field(
        None,
        description="Days before now at which it begins; by default all that the source has.",
    )
    cron: Annotated[str, AfterValidator(check_cron)] | None = Field(
        None, description="Cron expression of five fields, in UTC; by default once a week."
    )


class Defaults(BaseModel):
    """The defaults of all sources, for keys that their own tables do not set."""

    model_config = _STRICT

    sink: str | None = Field(
        None,
        description="Name of the sink: of a table `[sinks.NAME]`. With a single sink, that one.",
    )
    schedule: Schedule | None = Field(None, description="When the source's deployment runs.")
    limits: Limits = Field(
        Limits(), description="Where a first collection starts, and what makes a run fail."
    )
    when_busy: WhenBusy = Field(
        "fail",
        description="What a run does while another run collects the source: `fail`, `wait` until "
        "it is free, or `skip`, which completes without a collection.",
    )
    freshness: Freshness | None = Field(None, description="How old the source's watermark may be.")
    reconcile: Reconciling | None = Field(
        None,
        description="Whether and how it is read again; by default weekly where the kind allows it "
        "and the source has a schedule.",
    )


class SourceTable(Defaults):
    """One source: its kind, the fields of that kind, and what is to happen with it."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    kind: str = Field(
        min_length=1,
        description="A kind of this package, the name of an entry point in the group "
        "`ladon_storage.sources`, or a class as `package.module:Class`.",
    )

    @property
    def fields(self) -> dict[str, Any]:
        """The kind and its fields, as `source_from` takes them."""
        return {"kind": self.kind, **(self.model_extra or {})}


class SinkTable(BaseModel):
    """One sink: its address, or a kind of one's own with its fields."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    url: str | None = Field(
        None, description="Address without a password, such as `sqlite:///records.db`."
    )
    url_secret: SecretName | None = Field(
        None, description="Name of the secret that holds the whole address, instead of `url`."
    )
    table: str | None = Field(None, description="Table that holds the records; `records`.")
    keep: Literal["latest", "all"] | None = Field(
        None, description="Whether the latest version of each record is kept, or every one."
    )
    options: dict[str, Any] | None = Field(
        None,
        description="Settings of an object storage by the names of its variables, such as "
        '`{ AWS_ENDPOINT_URL = "https://minio.example:9000" }`; none of them a secret.',
    )
    secrets: dict[str, SecretName] | None = Field(
        None,
        description="Names of the secrets that hold the other settings, such as "
        '`{ AWS_ACCESS_KEY_ID = "lake-key-id", AWS_SECRET_ACCESS_KEY = "lake-key" }`.',
    )
    kind: str | None = Field(
        None,
        description="Name of an entry point in the group `ladon_storage.sinks`, or a class as "
        "`package.module:Class`. The other keys are its fields.",
    )

    @property
    def fields(self) -> dict[str, Any]:
        """What the table says, as `sink_from` takes it."""
        return self.model_dump(exclude_unset=True)


class CollectManyTable(BaseModel):
    """The deployment that collects all sources of the file in one flow run."""

    model_config = _STRICT

    schedule: Schedule | None = Field(
        None,
        description="When it runs. A source without a schedule of its own is then collected by it "
        "alone.",
    )
    concurrency: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        None, description="Number of sources that a worker collects at once; `10`."
    )
    spread: Annotated[int, Field(strict=True, ge=1, le=1000)] | None = Field(
        None,
        description="Number of workers that share the sources: of the flow's task runner, or runs "
        "on the work pool of its deployment.",
    )


class StorageTable(BaseModel):
    """The storage of watermarks. Without a `url`, the environment names it."""

    model_config = _STRICT

    url: str | None = Field(
        None,
        description="Address of the Storage Service, such as `https://storage.example:8000`, or "
        "of a file, such as `sqlite:///ladon.db`.",
    )
    token: SecretName | None = Field(
        None, description="Name of the secret that holds the service's bearer token."
    )
    username: str | None = Field(None, description="User name for basic authentication.")
    password: SecretName | None = Field(
        None, description="Name of the secret that holds the password for basic authentication."
    )
    environment: str = Field(
        "production", description="In `production` an unhealthy service fails the run."
    )
    timeout: float = Field(30, gt=0, description="Seconds that one request may take.")
    verify_ssl: bool = Field(True, description="Whether the service's certificate is checked.")
    allow_unverified_ssl: bool = Field(
        False, description="Whether production may go without checking the certificate."
    )
    ca_file: Path | None = Field(
        None, description="File with the certificates of a private authority (PEM)."
    )
    client_cert: Path | None = Field(None, description="File with the client's certificate (PEM).")
    client_key: Path | None = Field(None, description="File with the client's key (PEM).")
    max_connections: int = Field(100, ge=1, description="Connections of one event loop at most.")
    max_connections_per_host: int = Field(
        30, ge=1, description="Connections of one event loop to one host at most."
    )
    circuit_url: str | None = Field(
        None,
        description="Where processes share the circuit, such as `sqlite:////var/lib/circuits.db`.",
    )
    circuit_url_secret: SecretName | None = Field(
        None, description="Name of the secret that holds the address of the circuit's store."
    )
