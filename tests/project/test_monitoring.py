"""The alerts: they name metrics that are exposed, fire at a fault, and are silent without one."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

import ladon_storage.client.metrics  # noqa: F401 - registers what the alerts name
from ladon_storage.server.metrics import ServiceMetrics
from ladon_storage.server.overview import Overview, State

MONITORING = Path(__file__).resolve().parent.parent.parent / "monitoring"
ALERTS = MONITORING / "alerts.yml"
RUNBOOK = "docs/how-to/alerts.md"
PROMTOOL = shutil.which("promtool")

NEVER = " ".join(["Inf"] * 41)
OF_KEV = '{source_id="kev"}'
OF_RUN = '{job="ladon-run", instance="collect-kev", error_type="%s"}'
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "StorageServiceDown": (
        {'up{job="ladon-storage"}': "1 0x40"},
        {'up{job="ladon-storage"}': "1x40"},
    ),
    "StorageServiceErrors": (
        {'storage_service_requests_total{status="503"}': "0+10x40"},
        {'storage_service_requests_total{status="200"}': "0+100x40"},
    ),
    "StorageServiceChangesLost": (
        {"storage_service_lost_changes_total": "0x20 7x20"},
        {"storage_service_lost_changes_total": "7x40"},
    ),
    "StorageSourceStale": (
        {
            f"storage_service_watermark_age_seconds{OF_KEV}": NEVER,
            f"storage_service_watermark_age_limit_seconds{OF_KEV}": "3600x40",
        },
        {
            f"storage_service_watermark_age_seconds{OF_KEV}": "3500x40",
            f"storage_service_watermark_age_limit_seconds{OF_KEV}": "3600x40",
            'storage_service_watermark_age_seconds{source_id="nvd"}': NEVER,
        },
    ),
    "StorageSourceFailing": (
        {f"storage_service_failures_in_a_row{OF_KEV}": "3x40"},
        {f"storage_service_failures_in_a_row{OF_KEV}": "2x40"},
    ),
    "StorageServiceRunStale": (
        {f"storage_service_run_stale{OF_KEV}": "1x40"},
        {f"storage_service_run_stale{OF_KEV}": "1x4 0x36"},
    ),
    "StorageSourceHeldLong": (
        {f"storage_service_running_seconds{OF_KEV}": "21700x40"},
        {f"storage_service_running_seconds{OF_KEV}": "21500x40"},
    ),
    "StorageServiceWatermarkInFuture": (
        {f"storage_service_watermark_in_future{OF_KEV}": "1x40"},
        {f"storage_service_watermark_in_future{OF_KEV}": "0x40"},
    ),
    "StorageSourceGap": (
        {f"storage_service_last_run_gap{OF_KEV}": "1x40"},
        {f"storage_service_last_run_gap{OF_KEV}": "0x40"},
    ),
    "StorageSinkBehind": (
        {f"storage_service_last_run_sink_behind{OF_KEV}": "1x40"},
        {f"storage_service_last_run_sink_behind{OF_KEV}": "0x40"},
    ),
    "StorageSourceQuarantine": (
        {
            f"storage_service_last_run_quarantined{OF_KEV}": "6x40",
            f"storage_service_last_run_delivered{OF_KEV}": "100x40",
        },
        {
            f"storage_service_last_run_quarantined{OF_KEV}": "5x40",
            f"storage_service_last_run_delivered{OF_KEV}": "100x40",
            'storage_service_last_run_quarantined{source_id="nvd"}': "0x40",
            'storage_service_last_run_delivered{source_id="nvd"}': "0x40",
        },
    ),
    "StorageSourceLate": (
        {
            f"storage_service_last_run_behind_seconds{OF_KEV}": "3000 0x39",
            f"storage_service_overlap_seconds{OF_KEV}": "3600x40",
        },
        {
            f"storage_service_last_run_behind_seconds{OF_KEV}": "2800x40",
            # Of a source that is collected once a day: no record is behind the watermark.
            f"storage_service_lateness_seconds{OF_KEV}": "86400x40",
            f"storage_service_overlap_seconds{OF_KEV}": "3600x40",
        },
    ),
    "StorageSourceConflicts": (
        {f"storage_service_conflicts_total{OF_KEV}": "0+1x40"},
        {f"storage_service_conflicts_total{OF_KEV}": "7x40"},
    ),
    "StorageClientCircuitBreakerOpen": (
        # Each probe of a service that hangs is half open for as long as its timeout.
        {'storage_client_circuit_breaker_state{instance="w"}': " ".join(["1 1 2"] * 14)},
        {'storage_client_circuit_breaker_state{instance="w"}': " ".join(["1 1 2 0"] * 11)},
    ),
    "StorageClientHighErrorRate": (
        {
            f"storage_client_requests_total{OF_RUN % 'timeout'}": "3x40",
            f"storage_client_requests_total{OF_RUN % ''}": "2x40",
        },
        {
            f"storage_client_requests_total{OF_RUN % 'timeout'}": "1x40",
            f"storage_client_requests_total{OF_RUN % ''}": "5x40",
        },
    ),
    "StorageRecordsMissed": (
        {f"ladon_reconciliation_missed{OF_KEV}": "2x40"},
        {f"ladon_reconciliation_missed{OF_KEV}": "0x40"},
    ),
}
"""The series of each alert at which it fires, and at which it is silent, a value each minute."""


def rules() -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def exposed() -> set[str]:
    """Return the names of the metrics of clients and service."""
    nothing = Overview(dict.fromkeys(State, 0), 0, [])
    shown = generate_latest() + ServiceMetrics().text(nothing, datetime.now(UTC))
    return set(re.findall(r"^# TYPE (\S+)", shown.decode(), re.MULTILINE))


def test_alerts_name_metrics_that_are_exposed() -> None:
    """A renamed metric must not silence an alert."""
    found = exposed() | {"up"}
    for rule in rules().values():
        named = set(re.findall(r"\b(?:storage|ladon)_\w+|\bup\b", rule["expr"]))
        assert named
        assert named <= found


def test_each_alert_has_its_cases() -> None:
    """No alert is left without the series at which it fires and at which it is silent."""
    assert set(rules()) == set(CASES)


@pytest.mark.slow
@pytest.mark.skipif(
    PROMTOOL is None, reason="there is no promtool; install it: apt-get install prometheus"
)
def test_alerts_fire_at_a_fault_and_are_silent_without_one(tmp_path: Path) -> None:
    """Prometheus's own tool evaluates each rule over both series."""
    fires_now = 'count(ALERTS{alertname="%s", alertstate="firing"}) or vector(0)'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": each} for name, each in series.items()],
            "promql_expr_test": [
                {
                    "expr": fires_now % alert,
                    "eval_time": "30m",
                    "exp_samples": [{"labels": "{}", "value": int(fires)}],
                }
            ],
        }
        for alert, both in CASES.items()
        for fires, series in zip((True, False), both, strict=True)
    ]
    file = tmp_path / "tests.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests})
    )
    ran = subprocess.run(
        [PROMTOOL or "", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.skipif(
    PROMTOOL is None, reason="there is no promtool; install it: apt-get install prometheus"
)
def test_prometheus_reads_the_configuration(tmp_path: Path) -> None:
    """The shipped configuration and its rules are valid."""
    for file in ("prometheus.yml", "alerts.yml"):
        shutil.copy(MONITORING / file, tmp_path)
    ran = subprocess.run(
        [PROMTOOL or "", "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_runbook_has_each_alert() -> None:
    """An alert that wakes an operator has a row with what it means, and leads to its section."""
    runbook = (MONITORING.parent / RUNBOOK).read_text(encoding="utf-8")
    section = runbook.partition("## When an alert fires")[2]
    rows = re.findall(r"^\| `(Storage\w+)` \| \[.+\]\(#(\w+)\) \|$", section, re.MULTILINE)
    headings = re.findall(r"^### (\w+)$", section, re.MULTILINE)
    assert sorted(rows) == sorted((alert, alert.lower()) for alert in rules())
    assert sorted(headings) == sorted(rules())
    for alert, rule in rules().items():
        assert rule["annotations"]["runbook"] == f"{RUNBOOK}#{alert.lower()}"
