"""The status page: the sources of the service for the people who run it, without scripts.

- Every value passes Jinja's escaping, and control characters of a feed's text are shown as such.
- A browser signs in with a token, and keeps it in a cookie that no script reads and only the pages
  take. A signature in its place would need a key that the database does not have. A revoked token
  ends its sessions.
- The pages change nothing but the session.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from uuid import UUID

import jinja2
from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict, Field

from ladon_storage.errors import DatabaseError
from ladon_storage.server import requests
from ladon_storage.server.access import COOKIE, SESSION_SECONDS, Access
from ladon_storage.server.next_steps import finding, next_steps
from ladon_storage.server.overview import Listing, Order, RunRecord, State, amount
from ladon_storage.server.store import WatermarkDatabase

SOURCES, SOURCE = "/", "/sources/{source_id:[^/]*}"
SIGN_IN, SIGN_OUT, STYLE = "/sign-in", "/sign-out", "/style.css"
PAGES = frozenset({SOURCES, "/sources/{source_id}"})
PAGE_SIZE = 50
_HISTORY_SIZE = 50
_LONGEST_TOKEN_FORM = 8_192

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # With no-referrer a browser would hide the origin of its own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_STYLE = (Path(__file__).parent / "templates" / "style.css").read_bytes()


class SourcesQuery(BaseModel):
    """The query of the list of sources."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    search: Annotated[str, Field(max_length=255)] = ""
    state: State | None = None
    order: Order = Order.WORST
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class Pages:
    """The handlers of the status page.

    Args:
        store: The watermarks.
        access: The tokens.
        prefect_url: The address of Prefect's UI, for links to runs; ``None``: no links.
    """

    def __init__(
        self, store: WatermarkDatabase, access: Access, prefect_url: str | None = None
    ) -> None:
        self._store = store
        self._access = access
        self._prefect_url = (prefect_url or "").rstrip("/")
        self._templates = _environment()
        self._templates.globals["run_url"] = self._run_url

    def table(self) -> list[web.RouteDef]:
        """Return every route of the page."""
        return [
            web.get(SOURCES, self.sources),
            web.get(SOURCE, self.source),
            web.get(SIGN_IN, self.sign_in_form),
            web.post(SIGN_IN, self.sign_in),
            web.post(SIGN_OUT, self.sign_out),
            web.get(STYLE, self.style),
        ]

    async def sources(self, request: web.Request) -> web.Response:
        """Show the sources, the worst first."""
        values = {name: value for name, value in request.query.items() if value}
        query = requests.checked(values, SourcesQuery)
        token = self._access.of(request)
        listing = Listing(
            PAGE_SIZE,
            (query.page - 1) * PAGE_SIZE,
            query.search,
            "" if token is None else token.prefix,
            query.state,
            order=query.order,
        )
        found = await self._store.overview(listing)
        return self._page(
            request,
            "sources.html",
            found=found,
            query=query,
            states=list(State),
            orders=list(Order),
            pages=max(1, -(-found.found // PAGE_SIZE)),
            fault=await self._fault(),
            lost=self._store.lost_changes,
            link=lambda **changed: _link(query, **changed),
        )

    async def source(self, request: web.Request) -> web.Response:
        """Show one source with its ledger and its history."""
        source_id = requests.source_id(request, 2)
        query = requests.query(request, requests.HistoryQuery)
        found = await self._store.source_state(source_id)
        history = await self._store.history(
            source_id, moved=query.moved, limit=_HISTORY_SIZE, before=query.before
        )
        status = 200 if found or history.changes else 404
        return self._page(
            request,
            "source.html",
            status=status,
            source_id=source_id,
            found=found,
            ledger=_facts(found[1].ledger) if found else [],
            steps=next_steps(found[0].state, source_id, found[1].ledger) if found else [],
            history=history,
            query=query,
            fault=await self._fault(),
            lost=self._store.lost_changes,
        )

    async def sign_in_form(self, request: web.Request) -> web.Response:
        """Ask for a token."""
        return self._page(request, "sign_in.html", to=_local(request.query.get("to")), wrong=False)

    async def sign_in(self, request: web.Request) -> web.Response:
        """Take a token, and give a session."""
        form = await requests.form(request, _LONGEST_TOKEN_FORM)
        to = _local(form.get("to"))
        session = self._access.session(form.get("token", "").strip())
        if session is None:
            return self._page(request, "sign_in.html", status=401, to=to, wrong=True)
        response = web.Response(status=303, headers={**_HEADERS, hdrs.LOCATION: to})
        response.set_cookie(
            COOKIE,
            session,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=request.secure,
        )
        return response

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session."""
        response = web.Response(status=303, headers={**_HEADERS, hdrs.LOCATION: SIGN_IN})
        response.del_cookie(COOKIE, httponly=True, samesite="Strict", secure=request.secure)
        return response

    async def style(self, request: web.Request) -> web.Response:
        """Return the style sheet."""
        headers = {**_HEADERS, hdrs.CONTENT_TYPE: "text/css; charset=utf-8"}
        return web.Response(body=_STYLE, headers={**headers, "Cache-Control": "max-age=3600"})

    async def _fault(self) -> str | None:
        """Return why the service takes no writes; ``None``: it does."""
        try:
            await self._store.check()
        except DatabaseError as error:
            return str(error)
        return None

    def _page(
        self, request: web.Request, name: str, *, status: int = 200, **values: Any
    ) -> web.Response:
        token = self._access.of(request)
        text = self._templates.get_template(name).render(
            now=self._store.now(),
            token=token,
            has_session=COOKIE in request.cookies,
            **values,
        )
        headers = {**_HEADERS, hdrs.CONTENT_TYPE: "text/html; charset=utf-8"}
        return web.Response(text=text, status=status, headers=headers)

    def _run_url(self, run_id: str | None) -> str | None:
        """Return the page of a run in Prefect's UI; ``None``: it has none."""
        try:
            run = UUID((run_id or "").partition("/")[0])  # of an execution of it
        except ValueError:
            return None
        return f"{self._prefect_url}/runs/flow-run/{run}" if self._prefect_url else None


def to_sign_in(request: web.Request) -> web.Response:
    """Return the way to the sign-in form, and back to the page."""
    where = f"{SIGN_IN}?{urlencode({'to': request.path_qs})}"
    return web.Response(status=303, headers={**_HEADERS, hdrs.LOCATION: where})


def _local(path: str | None) -> str:
    """Return a path of this service; an address of another site is none."""
    if not path or not path.startswith("/") or path.startswith(("//", "/\\")):
        return SOURCES
    return path if path.isascii() and path.isprintable() else SOURCES


def _link(query: SourcesQuery, **changed: Any) -> str:
    """Return the link to the list with other settings; those by default are left out."""
    values = query.model_copy(update=changed).model_dump(mode="json", exclude_defaults=True)
    return f"{SOURCES}?{urlencode(values)}" if values else SOURCES


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ladon_storage.server"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "span": _span,
        "seconds": lambda seconds: _span(timedelta(seconds=seconds)),
        "utc": _utc,
        "plain": _plain,
        "path": lambda text: quote(text, safe=""),
    }
    environment.globals |= {"amount": amount, "bars": bars, "finding": finding}
    return environment


def bars(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the picture of runs, the oldest first: a bar for each, in units of its height."""
    most = max([run.records for run in runs], default=0) or 1
    return [
        {
            "x": 6 * number,
            "height": 20 if run.outcome == "failed" else max(1, round(20 * run.records / most)),
            "failed": run.outcome == "failed",
        }
        for number, run in enumerate(reversed(runs))
    ]


def _facts(ledger: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Return the fields of a ledger as rows; those of an object have its name before them."""
    facts: list[tuple[str, Any]] = []
    for name, value in ledger.items():
        if name == "lateness" and not above:  # a histogram; its quantile is a number of its own
            continue
        named = f"{above}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            facts += _facts(value, f"{named}: ")
        elif isinstance(value, list):
            facts.append((named, ", ".join(str(each) for each in value[:60])))
        else:
            facts.append((named, value))
    return facts


def _span(value: timedelta | None) -> str:
    """Return a duration in its two greatest units.

    >>> _span(timedelta(hours=30)), _span(timedelta(seconds=-90)), _span(timedelta(0))
    ('1 d 6 h', '-1 min 30 s', '0 s')
    """
    if value is None:
        return "never"
    left = round(abs(value).total_seconds())
    parts = []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        parts += [f"{count:,} {unit}"] * bool(count)
    sign = "-" if value < timedelta(0) and parts else ""
    return sign + (" ".join(parts[:2]) or "0 s")


def _utc(instant: datetime | None) -> str:
    return "never" if instant is None else f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def _plain(text: object, longest: int = 500) -> str:
    """Return a feed's text on one line, with a mark for each character that would not be seen."""
    shown = "".join(
        " " if each in "\n\t\r" else "\ufffd" if unicodedata.category(each)[0] == "C" else each
        for each in str(text)[: longest + 1]
    )
    return shown if len(shown) <= longest else shown[:longest] + "…"
