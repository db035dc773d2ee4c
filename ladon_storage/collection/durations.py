"""Durations of settings: a number of their unit in JSON and in forms, a ``timedelta`` in Python."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class _In:
    """The conversion between a number of units and a duration; other forms are read too."""

    unit: timedelta
    name: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self._read,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                self._written, when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "number", "minimum": 0, "title": self.name}

    def _read(self, value: object) -> object:
        if isinstance(value, bool):  # pydantic would read it as a second
            raise ValueError("should be a number or a text such as PT1H, not true or false")
        if not isinstance(value, int | float):
            return value
        try:
            return value * self.unit
        except (OverflowError, ValueError):  # an infinity, or no number
            raise ValueError("should be a number of days, hours or seconds that there is") from None

    def _written(self, value: timedelta) -> float:
        return value / self.unit


Days = Annotated[timedelta, _In(timedelta(days=1), "Days"), Field(ge=timedelta(0))]
"""A duration, in JSON a number of days."""

Hours = Annotated[timedelta, _In(timedelta(hours=1), "Hours"), Field(ge=timedelta(0))]
"""A duration, in JSON a number of hours."""

Seconds = Annotated[timedelta, _In(timedelta(seconds=1), "Seconds"), Field(ge=timedelta(0))]
"""A duration, in JSON a number of seconds."""


def duration(default: timedelta, unit: timedelta, title: str, description: str) -> Any:
    """Return the field of a duration, whose form shows its default as a number of ``unit``."""
    return Field(
        default, title=title, description=description, json_schema_extra={"default": default / unit}
    )
