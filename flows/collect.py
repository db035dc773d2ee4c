"""The flows of `ladon_storage.flows.collect`, as `prefect.yaml` names them."""

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
)

__all__ = [
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
]
