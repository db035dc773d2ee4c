"""Deployable flows: thin, and made of the tasks and the engine of `ladon_storage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladon_storage.lazy import offer

if TYPE_CHECKING:
    from ladon_storage.flows.backfill import backfill
    from ladon_storage.flows.circuit import probe_storage
    from ladon_storage.flows.collect import (
        collect,
        collect_kev,
        collect_misp,
        collect_nvd,
        collect_otx,
        collect_rest,
        collect_sql,
        collect_taxii,
        collect_threatfox,
        collect_urlhaus,
        flow_of,
    )
    from ladon_storage.flows.collect_many import collect_many
    from ladon_storage.flows.freshness import check_freshness
    from ladon_storage.flows.reconcile import reconcile

__all__ = [
    "backfill",
    "check_freshness",
    "collect",
    "collect_kev",
    "collect_many",
    "collect_misp",
    "collect_nvd",
    "collect_otx",
    "collect_rest",
    "collect_sql",
    "collect_taxii",
    "collect_threatfox",
    "collect_urlhaus",
    "flow_of",
    "probe_storage",
    "reconcile",
]

offer(
    __name__,
    {
        "backfill": ("backfill",),
        "circuit": ("probe_storage",),
        "collect": (
            "collect",
            "collect_kev",
            "collect_misp",
            "collect_nvd",
            "collect_otx",
            "collect_rest",
            "collect_sql",
            "collect_taxii",
            "collect_threatfox",
            "collect_urlhaus",
            "flow_of",
        ),
        "collect_many": ("collect_many",),
        "freshness": ("check_freshness",),
        "reconcile": ("reconcile",),
    },
)
