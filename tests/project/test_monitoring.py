"""The alerts speak of metrics that exist."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import generate_latest

import ladon_storage.client.metrics  # noqa: F401 - registers what the alerts speak of
from ladon_storage.server.metrics import ServiceMetrics

ALERTS = Path(__file__).resolve().parent.parent.parent / "monitoring" / "alerts.yml"


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_alerts_name_metrics_that_are_exposed() -> None:
    """A renamed metric must not silence an alert."""
    shown = generate_latest() + ServiceMetrics().text([], datetime.now(UTC))
    exposed = set(re.findall(r"^# TYPE (\S+)", shown.decode(), re.MULTILINE))
    for rule in rules().values():
        named = set(re.findall(r"storage_\w+", rule["expr"]))
        assert named
        assert named <= exposed


def test_alerts_have_their_delay_and_severity() -> None:
    """What keeps records from being collected is critical; what may pass by itself is a warning."""
    found = {name: (rule["for"], rule["labels"]["severity"]) for name, rule in rules().items()}
    assert found == {
        "StorageClientCircuitBreakerOpen": ("5m", "critical"),
        "StorageClientHighErrorRate": ("10m", "warning"),
        "StorageServiceRunStale": ("5m", "warning"),
        "StorageServiceWatermarkInFuture": ("5m", "critical"),
    }
