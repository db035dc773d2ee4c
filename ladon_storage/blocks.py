"""Prefect blocks: where the Storage Service is, and where records go, chosen in the UI.

Secrets live here or in the environment, never in a flow's parameters: Prefect stores parameters,
and shows them, in plain text.

Prefect needs a URL for the logo, and this project has none on the internet. So the Storage Service
serves it, where STORAGE_SERVICE_URL is set when the blocks are registered.
"""

from __future__ import annotations

import os
from typing import Literal

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, ValidationError

from ladon_storage.collection.protocols import Sink
from ladon_storage.connect import StorageClient, new_client
from ladon_storage.settings import StorageSettings
from ladon_storage.sinks import sink_from

__all__ = ["RecordSink", "StorageService"]


def _logo() -> HttpUrl | None:
    try:
        settings = StorageSettings(url=os.environ.get("STORAGE_SERVICE_URL"))
    except ValidationError:  # the settings are missing or make no sense: tasks report that
        return None
    return None if settings.is_file else HttpUrl(f"{settings.url}/logo.svg")


def wrong_values(error: BaseException | None) -> str | None:
    """Return what is wrong with the values of a block that Prefect could not load, but no value.

    Neither Prefect's form of a block nor its API checks them.
    """
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    if not isinstance(cause, ValidationError):
        return None
    # By a reference, Prefect does not know the type of the block.
    block = f"{str(error).partition(' of block type ')[0]} ({cause.title})"
    details = cause.errors(include_url=False, include_input=False, include_context=False)
    problems = [
        ": ".join([*map(str, each["loc"]), each["msg"].removeprefix("Value error, ")])
        for each in details
    ]
    return f"{block}: {'; '.join(problems)}. Correct it in Prefect's UI under Blocks."


class StorageService(Block, StorageSettings):
    """The address of LADON's Storage Service, the credentials for it, and its client's settings.

    The block is a value, and hands out clients. Tasks and flows take the block, never a client.

    Example:
        Load a saved block and read a watermark:

        ```python
        from ladon_storage.blocks import StorageService

        storage = await StorageService.aload("production")
        async with storage.get_client() as client:
            watermark = await client.get_watermark("kev")
        ```
    """

    _block_type_name = "LADON Storage Service"
    _block_type_slug = "ladon-storage-service"
    _logo_url = _logo()
    _description = "Where LADON's Storage Service is, and how to speak to it."

    # Required: without a required field, Prefect takes a reference to a block both for a block and
    # for a reference, and refuses it. No block could then be chosen in a form.
    url: str = Field(
        title="URL",
        description="Address of the Storage Service, such as https://storage.example:8000, or of a "
        "file on this host, such as sqlite:///ladon.db.",
    )

    def get_client(self) -> StorageClient:
        """Return a new client, to be used with ``async with`` on one event loop.

        Raises:
            ConfigurationError: The settings make no sense together, or a file cannot be read.
        """
        return new_client(self)


class RecordSink(Block):
    """The place where the records of a collection become durable.

    Example:
        Collect into a saved sink:

        ```python
        from ladon_storage.flows.collect import collect
        from ladon_storage.blocks import RecordSink

        await collect({"kind": "kev"}, sink=await RecordSink.aload("records"))
        ```
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name = "LADON Record Sink"
    _block_type_slug = "ladon-record-sink"
    _logo_url = _logo()
    _description = "Where the records of a collection become durable."

    url: SecretStr = Field(
        title="URL", description="Address of the database, such as sqlite:///records.db."
    )
    table: str = Field(default="records", description="Table that holds the records.")
    keep: Literal["latest", "all"] = Field(
        default="latest",
        description="Keep the latest version of each record (latest), or every version (all).",
    )
    options: SecretDict = Field(
        default=SecretDict({}),
        description="Settings of an object storage by the names of its variables, such as "
        "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )

    def get_sink(self) -> Sink:
        """Return the sink at this address.

        Raises:
            ConfigurationError: There is no sink for this address.
        """
        return sink_from(
            {"url": self.url.get_secret_value(), "table": self.table, "keep": self.keep},
            credentials=self.options.get_secret_value(),
        )
