"""The generated parts of the reference, each from the code that it describes.

``make docs`` writes them into their pages, and `test_reference` fails where a page is not current.
A generated part follows a marker such as ``<!-- generated: fields kev -->`` and ends at the next
empty line.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import yaml
from aiohttp import ClientSession
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

import ladon_storage.client.metrics  # registers what it counts with
from ladon_storage import StorageServiceClient, WatermarkConflictError, errors
from ladon_storage.cli.reference import reference as commands
from ladon_storage.project import SinkTable, SourceTable, StorageTable
from ladon_storage.project.tables import CollectManyTable
from ladon_storage.server.openapi import document
from ladon_storage.server.serving import serving
from ladon_storage.sources import KINDS, RestApi
from tests.documents import ROOT

PAGES = ROOT / "docs" / "reference"
PACKAGE = ROOT / "ladon_storage"


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in models_of(each)]


def parts_of(model: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Return the models of the fields that hold any."""
    found = {name: models_of(field.annotation) for name, field in model.model_fields.items()}
    return {name: models for name, models in found.items() if models}


PARTS_OF_REST = parts_of(RestApi)
MODELS: dict[str, type[BaseModel]] = {
    "storage": StorageTable,
    "sinks": SinkTable,
    "collect_many": CollectManyTable,
    "source": SourceTable,
    **{name: models[0] for name, models in parts_of(SourceTable).items()},
    "connection": PARTS_OF_REST["connection"][0],
    "time parameter": PARTS_OF_REST["since"][0],
    "rate": PARTS_OF_REST["rate"][0],
    **{kind.model_fields["kind"].default: kind for kind in KINDS},
    **{f"paging {each.model_fields['kind'].default}": each for each in PARTS_OF_REST["paging"]},
}
SCHEMAS = (
    "Watermark",
    "WatermarkUpdate",
    "WatermarkReset",
    "WatermarkPage",
    "BatchRequest",
    "BatchAnswer",
    "WatermarkChange",
    "HistoryPage",
    "Health",
    "Problem",
)
MARKER = re.compile(r"(<!-- generated: (.+?) -->\n\n)(.*?)(?=\n\n|\n\Z)", re.DOTALL)


def table(*head: str, rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line).replace("|  ", "| ") + " |" for line in lines)


def cell(text: object) -> str:
    """Return a text as the cell of a table."""
    return re.sub(r"\s+", " ", str(text or "")).strip().replace("|", "\\|")


def fields(model: type[BaseModel]) -> str:
    """Return the table of a model's fields, those that are required first."""
    found = [(name, field) for name, field in model.model_fields.items() if name != "kind"]
    if model in (SourceTable, SinkTable):
        found.insert(0, ("kind", model.model_fields["kind"]))
    rows = []
    for name, field in sorted(found, key=lambda each: not each[1].is_required()):
        default = "required" if field.is_required() else default_of(field)
        if name == "source_id":
            default = "the table's name"
        text = cell(field.description)
        if unit := re.search(r"\((days|hours|seconds)\)$", field.title or ""):
            text += f" In {unit[1]}."
        rows.append((f"`{name}`", default, text))
    return table("key", "default", "meaning", rows=rows)


def default_of(field: Any) -> str:
    """Return the default of a field as the file would have it; empty where it says nothing."""
    extra = field.json_schema_extra
    value = extra.get("default", field.default) if isinstance(extra, dict) else field.default
    if field.default_factory is not None:
        value = field.default_factory()
    if value is None or value in ((), {}, "") or value is PydanticUndefined:
        return ""
    value = to_jsonable_python(value)
    if isinstance(value, dict):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, float) and str(field.title).endswith("(hours)"):
        value = f"PT{value * 60:.0f}M"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def error_tree() -> str:
    """Return the tree of errors; those that are importable from the package have no module."""
    lines = ["```text", errors.LadonStorageError.__name__]

    def draw(base: type[Exception], indent: str) -> None:
        below = [kind for kind in base.__subclasses__() if kind.__module__ == errors.__name__]
        for each in below:
            is_last = each is below[-1]
            own = [b.__name__ for b in each.__bases__ if hasattr(builtins, b.__name__)]
            suffix = f" ({', '.join(own)})" if own else ""
            lines.append(f"{indent}{'└── ' if is_last else '├── '}{each.__name__}{suffix}")
            draw(each, indent + ("    " if is_last else "│   "))

    draw(errors.LadonStorageError, "")
    return "\n".join([*lines, "```"])


def error_table() -> str:
    """Return each error with its condition and its fields."""
    rows = []
    for name, each in list[tuple[str, Any]](vars(errors).items()):
        if isinstance(each, type) and issubclass(each, errors.LadonStorageError):
            promise = inspect.cleandoc(str(each.__doc__)).partition("\n\n")[0]
            named = re.findall(r"^    (\w+): ", inspect.cleandoc(str(each.__doc__)), re.MULTILINE)
            own = [f"`{field}`" for field in named if field != "message"]
            public = "yes" if name in ladon_storage.__all__ else ""
            rows.append((f"`{name}`", cell(promise), ", ".join(own), public))
    return table("error", "meaning", "fields", "public", rows=rows)


def client_instruments() -> str:
    """Return the metrics of processes that collect."""
    named: dict[str, Any] = getattr(REGISTRY, "_names_to_collectors", {})
    found = {
        id(each): each for name, each in named.items() if name.startswith(("storage_", "ladon_"))
    }
    rows = []
    for each in found.values():
        [family] = each.describe()
        rows.append(
            metric_row(
                family.name, family.type, getattr(each, "_labelnames", ()), family.documentation
            )
        )
    return table("metric", "type", "labels", "meaning", rows=sorted(rows))


def service_instruments() -> str:
    """Return the metrics of the embedded Storage Service."""
    rows = []
    for family in text_string_to_metric_families(asyncio.run(scraped())):
        names = dict.fromkeys(name for sample in family.samples for name in sample.labels)
        if not family.name.endswith("_created"):
            labels = [name for name in names if name != "le"]
            rows.append(metric_row(family.name, family.type, labels, family.documentation))
    return table("metric", "type", "labels", "meaning", rows=sorted(rows))


async def scraped() -> str:
    """Return what a Storage Service shows of a source that it knows, and which has a limit."""
    limits = {"kev": timedelta(days=1)}
    with TemporaryDirectory() as folder:
        async with (
            serving(Path(folder) / "storage.db", limits=limits) as address,
            StorageServiceClient(address) as client,
            ClientSession() as session,
        ):
            names = ("records_delivered", "records_quarantined", "lateness_p99_seconds")
            ledger = dict.fromkeys((*names, "behind_seconds", "overlap_seconds"), 1)
            begin = datetime(2026, 1, 1, tzinfo=UTC)
            await client.get_watermark("kev")  # shows that the service keeps ledgers
            await client.update_watermark("kev", begin, "running", run_id="run")
            await client.update_watermark("kev", begin, run_id="run", ledger=ledger)
            with suppress(WatermarkConflictError):
                await client.update_watermark("kev", datetime(2025, 1, 1, tzinfo=UTC))
            async with session.get(f"{address}/metrics") as response:
                return await response.text()


def alerts() -> str:
    """Return the alerts that come with the package."""
    groups = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text("utf-8"))["groups"]
    rows = [
        (
            f"`{rule['alert']}`",
            rule["labels"]["severity"],
            re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"`\1`", cell(rule["annotations"]["summary"])),
        )
        for group in groups
        for rule in group["rules"]
    ]
    return table("alert", "severity", "summary", rows=rows)


def metric_row(name: str, kind: str, labels: Any, text: str) -> tuple[str, ...]:
    """Return the row of a metric, by the name that a query has."""
    name += "_total" if kind == "counter" else ""
    return f"`{name}`", kind, ", ".join(f"`{each}`" for each in labels), cell(text)


def routes() -> str:
    """Return the service's routes, their parameters and the statuses of their answers."""
    rows = []
    for path, operations in json.loads(document())["paths"].items():
        for method, each in operations.items():
            if method == "parameters":
                continue
            parameters = ", ".join(f"`{given['name']}`" for given in each.get("parameters", ()))
            body = each.get("requestBody", {}).get("content", {}).get("application/json", {})
            model = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
            rows.append(
                (
                    f"`{method.upper()} {path}`",
                    cell(each["summary"]),
                    ", ".join(filter(None, (parameters, model and f"body `{model}`"))),
                    ", ".join(each["responses"]),
                )
            )
    return table("request", "does", "takes", "answers", rows=rows)


def parameters() -> str:
    """Return the parameters of the service's routes."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for path, operations in json.loads(document())["paths"].items():
        for method, each in operations.items():
            for given in each.get("parameters", ()) if method != "parameters" else ():
                place = "header" if given["in"] == "header" else f"query of `{path}`"
                places = found.setdefault((given["name"], given.get("description", "")), {})
                places[place] = None
    rows = [(f"`{name}`", ", ".join(where), cell(text)) for (name, text), where in found.items()]
    return table("parameter", "in", "meaning", rows=rows)


def schema(name: str) -> str:
    """Return the fields of a model of the service's requests and answers."""
    described = json.loads(document())["components"]["schemas"][name]
    required = described.get("required", [])
    rows = []
    for field, each in described["properties"].items():
        kinds = [kind for kind in each.get("anyOf", [each]) if kind.get("type") != "null"]
        shown = " or ".join(dict.fromkeys(type_name(kind) for kind in kinds))
        needed = "required" if field in required else ""
        rows.append((f"`{field}`", shown, needed))
    return table("field", "type", "", rows=rows)


def type_name(kind: dict[str, Any]) -> str:
    """Return what a JSON schema calls a value, with its limits."""
    if "$ref" in kind:
        return f"`{kind['$ref'].rpartition('/')[2]}`"
    if kind.get("type") == "array":
        return f"list of {type_name(kind['items'])}"
    name = str(kind.get("format", kind.get("type", "any JSON")))
    if "maxLength" in kind:
        name += f" of at most {kind['maxLength']:,} characters"
    return name


def variables_of_the_code() -> set[str]:
    """Return the package's own environment variables: constants, and what is read by its name."""
    pattern = re.compile(r"(LADON|STORAGE)_[A-Z_]+|ENVIRONMENT")
    return {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if pattern.fullmatch(node.value)
    }


def events_of_the_code() -> set[str]:
    """Return the names of the events that the package emits."""
    from ladon_storage import events  # imports Prefect

    return {
        value
        for value in vars(events).values()
        if isinstance(value, str) and value.startswith("ladon.") and not value.endswith(".")
    }


PARTS: dict[str, Callable[[], str]] = {
    **{f"fields {name}": lambda model=model: fields(model) for name, model in MODELS.items()},  # type: ignore[misc]
    **{
        f"schema {name}": lambda name=name: schema(name)  # type: ignore[misc]
        for name in SCHEMAS
    },
    "error tree": error_tree,
    "error table": error_table,
    "client metrics": client_instruments,
    "service metrics": service_instruments,
    "routes": routes,
    "parameters": parameters,
    "alerts": alerts,
}


GENERATED = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if page.name == "commands.md" or MARKER.search(page.read_text("utf-8"))
]
"""The pages that are generated, or have parts that are."""


def current(page: Path) -> str:
    """Return a page of the reference with its generated parts as they should be."""
    if page.name == "commands.md":
        return commands()
    return with_parts(page.read_text(encoding="utf-8"))


def with_parts(text: str) -> str:
    """Return a text with its generated parts as they should be."""
    return MARKER.sub(lambda found: found[1] + PARTS[found[2]](), text)


def main() -> None:
    """Write every generated part into its page."""
    logging.disable()  # the service reports the write that it refuses here
    for page in GENERATED:
        page.write_text(current(page), encoding="utf-8")


if __name__ == "__main__":
    main()
