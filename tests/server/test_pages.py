"""The status page: what it shows of each source, to whom, and that a feed's text stays text."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from ladon_storage.models import WatermarkUpdate
from ladon_storage.server.access import COOKIE, SESSION_SECONDS, add_token, revoke_token
from ladon_storage.server.database import open_database
from ladon_storage.server.serving import serving
from ladon_storage.server.sqlite import SqliteBackend
from ladon_storage.server.store import WatermarkDatabase
from ladon_storage.testing.clock import FakeClock
from tests.service import Answer, Caller, calling, path, success
from tests.service_databases import of_a_file

TOKEN = "correct-horse-battery"
RUN = "11111111-2222-3333-4444-555555555555"
MARKUP = '<script>alert(1)</script><img src=x onerror="alert(1)">'


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(answer.text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.text += f" {data}"

    def links(self) -> list[str | None]:
        """Return where the links lead."""
        return [values.get("href") for tag, values in self.tags if tag == "a"]

    def rows(self) -> list[str | None]:
        """Return the sources of the list, in its order."""
        return [link for link in self.links() if link and link.startswith("/sources/")]


@pytest.fixture
def clock() -> FakeClock:
    """The service's time."""
    return FakeClock()


@pytest.fixture
async def call(service_database: Path | str, clock: FakeClock) -> AsyncIterator[Caller]:
    """Call a service without a token, which knows the limit of one source."""
    async with (
        serving(
            service_database,
            now=clock.now,
            limits={"nvd": timedelta(hours=1)},
            prefect_url="http://127.0.0.1:4200/",
        ) as address,
        calling(address) as caller,
    ):
        yield caller


async def page(call: Caller, path: str = "/") -> Page:
    """Return a page that was answered."""
    answer = await call("GET", path)
    assert answer.status == 200, answer.text
    return Page(answer)


async def test_page_without_sources_says_what_comes(call: Caller) -> None:
    """An empty service has a page, and no table."""
    empty = await page(call)
    assert "No source has a watermark yet" in empty.text
    assert "table" not in dict(empty.tags)


async def test_worst_source_comes_first_with_its_reason(call: Caller, clock: FakeClock) -> None:
    """A failed source has its reason, a stale one its limit, a running one its run."""
    await call("PUT", path("kev"), success("2025-12-31T23:59:00Z", records_collected=1234))
    await call("PUT", path("nvd"), success("2025-12-31T22:00:00Z"))
    failed = {"timestamp": "2026-01-01", "status": "failed", "error_message": "503 by the feed"}
    await call("PUT", path("misp"), failed)
    running = {"timestamp": "2026-01-01", "status": "running", "run_id": RUN, "lease_seconds": 600}
    await call("PUT", path("otx"), running)
    clock.advance(60)
    shown = await page(call)
    assert shown.rows() == ["/sources/misp", "/sources/nvd", "/sources/otx", "/sources/kev"]
    for text in ("503 by the feed", "2 h 1 min of 1 h", "held by", "1,234", "4 sources"):
        assert text in shown.text, text
    assert f"http://127.0.0.1:4200/runs/flow-run/{RUN}" in shown.links()


async def test_list_has_the_last_runs_as_a_picture_and_what_the_ledger_says(
    call: Caller, clock: FakeClock
) -> None:
    """Records, duration, lateness against its overlap, quarantine, and the run in Prefect."""
    ledger = {
        "records_quarantined": 41, "lateness_p99_seconds": 90.0, "overlap_seconds": 86_400.0,
    }  # fmt: skip
    running = {"timestamp": "2026-01-01", "status": "running", "run_id": RUN}
    await call("PUT", path("kev"), {**running, "lease_seconds": 600})
    clock.advance(7)
    failed = {"timestamp": "2026-01-01", "status": "failed", "error_message": "503", "run_id": RUN}
    await call("PUT", path("kev"), failed)
    await call("PUT", path("kev"), {**running, "run_id": "two", "lease_seconds": 600})
    assert "took" not in (await page(call)).text  # the run before did
    clock.advance(12)
    done = success("2026-01-01T00:00:00Z", run_id="two", records_collected=1234, ledger=ledger)
    assert (await call("PUT", path("kev"), done)).status == 200
    shown = await page(call)
    for text in ("1,234", "took 12", "1 min 30 s of 1 d", " 41", "2 runs, 1 failed, at most 1,234"):
        assert text in shown.text, text
    drawn = [tag for tag, values in shown.tags if tag == "rect" or values.get("class") == "failed"]
    assert drawn.count("rect") == 1
    assert drawn.count("path") == 1
    assert (
        f"http://127.0.0.1:4200/runs/flow-run/{RUN}" in (await page(call, "/sources/kev")).links()
    )


async def test_page_of_a_source_has_its_ledger_and_history(call: Caller, clock: FakeClock) -> None:
    """Each number of the ledger, each change with its author, and the way to older ones."""
    ledger = {"records_delivered": 20, "reasons": {"no time": 3}, "gap": None}
    await call("PUT", path("a/b"), success("2026-01-01T00:00:00Z", ledger=ledger))
    for _ in range(60):
        clock.advance(60)
        await call("PUT", path("a/b"), {"timestamp": "2026-01-01", "status": "failed"})
    reset = {"timestamp": "2025-01-01T00:00:00Z", "reason": "the feed was rebuilt", "actor": "ann"}
    await call("POST", path("a/b", "/reset"), reset)
    shown = await page(call, "/sources/a%2Fb")
    for text in ("records delivered", "20", "reasons: no time", "the feed was rebuilt", "ann"):
        assert text in shown.text, text
    [older] = [link for link in shown.links() if link and "before=" in link]
    assert "success" in (await page(call, f"/sources/a%2Fb{older}")).text
    moved = await page(call, "/sources/a%2Fb?moved=true")
    assert moved.text.count("2025-01-01 00:00:00") == 2  # where it is, and the reset


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e308, True, "many", [1], {"a": 1}])
async def test_ledger_without_sense_leaves_the_pages_and_metrics_of_all(
    call: Caller, number: object
) -> None:
    """One writer's number that nothing can show hides neither its source nor the others."""
    names = (
        "records_delivered", "records_quarantined", "lateness_p99_seconds", "overlap_seconds",
        "gap", "sink_behind", "reasons",
    )  # fmt: skip
    ledger = dict.fromkeys(names, number)
    assert (await call("PUT", path("odd"), success("2026-01-01", ledger=ledger))).status == 201
    await call("PUT", path("kev"), success("2026-01-01", ledger={"records_delivered": 20}))
    assert "kev" in (await page(call)).text
    assert "records delivered" in (await page(call, "/sources/odd")).text
    metrics = (await call("GET", "/metrics")).text
    assert 'storage_service_last_run_delivered{source_id="kev"} 20.0' in metrics
    assert 'storage_service_last_run_delivered{source_id="odd"}' not in metrics


async def test_page_says_that_the_sink_was_behind_after_the_next_run_too(call: Caller) -> None:
    """A sink that was restored is a state of its own, and stays in the history."""
    behind = {"start": "2024-01-01T00:00:00Z", "end": "2024-01-03T00:00:00Z"}
    await call("PUT", path("kev"), success("2026-01-01T00:00:00Z", ledger={"sink_behind": behind}))
    await call("PUT", path("nvd"), success("2026-01-01T00:00:00Z", ledger={"pages": 1}))
    assert (await page(call, f"/?state={quote('sink refilled')}")).rows() == ["/sources/kev"]
    found = "the sink had records up to 2024-01-01T00:00:00Z"
    shown = await page(call, "/sources/kev")
    assert "sink refilled" in shown.text
    assert "ladon-storage reconcile kev" in shown.text
    assert found in shown.text
    await call("PUT", path("kev"), success("2026-01-01T00:00:00Z", ledger={"pages": 1}))
    again = await page(call, "/sources/kev")
    assert ("reconcile" in again.text, found in again.text) == (False, True)


async def test_unknown_source_is_404(call: Caller) -> None:
    """A page that is none says so; a deleted source keeps its history."""
    unknown = await call("GET", "/sources/unknown")
    assert (unknown.status, "has no watermark" in unknown.text) == (404, True)
    await call("PUT", path("gone"), success("2025-01-01T00:00:00Z"))
    await call("DELETE", path("gone"))
    assert "its history is kept" in (await page(call, "/sources/gone")).text


async def test_text_of_feeds_stays_text(call: Caller) -> None:
    """Markup in names, errors, runs and ledgers is shown and never obeyed."""
    failed = {
        "timestamp": "2026-01-01", "status": "failed", "run_id": MARKUP,
        "error_message": f"{MARKUP}\x1b[31m\u202e evil", "ledger": {MARKUP: MARKUP},
    }  # fmt: skip
    source_id = "<b>&\"'"
    assert (await call("PUT", path(source_id), failed)).status == 201
    for where in ("/", "/sources/%3Cb%3E&%22'", "/?search=%3Cscript%3E"):
        answer = await call("GET", where)
        shown = Page(answer)
        assert not {tag for tag, _ in shown.tags} & {"script", "b"}
        assert all(values.get("src") in (None, "/logo.svg") for _, values in shown.tags)
        assert not any(name.startswith("on") for _, values in shown.tags for name in values)
        assert not {"\x1b", "\u202e"} & set(answer.text)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy


@pytest.mark.parametrize(
    ("source_id", "search"),
    [
        ("Größe", "GRÖSSE"),
        ("Größe", "gro\u0308ße"),
        ("ΌΣΟΣ", "όσος"),
        ("Ленты", "ЛЕНТЫ"),
        ("a%b_c", "%b_"),
    ],
)
async def test_search_finds_a_name_in_any_case(
    service_database: Path | str, source_id: str, search: str
) -> None:
    """A name is found in any case and any script, and no sign is a wildcard."""
    async with serving(service_database) as address, calling(address) as call:
        await call("PUT", path(source_id), success("2024-01-01T00:00:00Z"))
        await call("PUT", path("other"), success("2024-01-01T00:00:00Z"))
        found = (await page(call, f"/?search={quote(search)}")).rows()
        assert found == [f"/sources/{quote(source_id, safe='')}"]


@pytest.mark.slow
async def test_thousands_of_sources_have_pages_and_search(tmp_path: Path) -> None:
    """5,000 sources are a list of pages in any order, and a name is found in any case."""
    file = tmp_path / "w.db"
    store = await WatermarkDatabase.open(file)
    start = datetime(2025, 1, 1, tzinfo=UTC)
    await asyncio.gather(
        *(
            store.put(
                f"Feed-{number:04}", WatermarkUpdate(timestamp=start + timedelta(minutes=number))
            )
            for number in range(5000)
        )
    )
    await store.close()
    async with serving(file) as address, calling(address) as call:
        first = await call("GET", "/")
        assert len(first.text) < 120_000
        assert "5,000 sources, page 1 of 100" in Page(first).text
        last = await page(call, "/?page=100&order=name")
        assert last.rows()[-1] == "/sources/Feed-4999"
        assert (await page(call, "/?order=oldest")).rows()[0] == "/sources/Feed-0000"
        assert (await page(call, "/?search=feed-123")).rows() == [
            f"/sources/Feed-123{digit}" for digit in range(10)
        ]
        assert "No source matches" in (await page(call, "/?state=failed")).text
        assert (await call("GET", "/?page=0")).status == 400


async def test_service_that_takes_no_writes_says_so(tmp_path: Path) -> None:
    """Over a database that another program holds, the page is there, with the fault above it."""
    file = tmp_path / "w.db"
    async with serving(file) as address, calling(address) as call:
        await call("PUT", path("kev"), success("2025-01-01T00:00:00Z"))
        (tmp_path / "w.db-wal").unlink()
        shown = await page(call)
        assert "takes no writes" in shown.text
        assert "was deleted" in shown.text
        assert shown.rows() == ["/sources/kev"]


async def test_service_that_lost_acknowledged_changes_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failover its pages and its metrics have their number; before it they have none."""
    async with serving(tmp_path / "w.db") as address, calling(address) as call:
        assert "were lost" not in (await page(call)).text
        assert "storage_service_lost_changes_total 0.0" in (await call("GET", "/metrics")).text
        monkeypatch.setattr(SqliteBackend, "lost_changes", 1_234)
        assert "lacked 1,234 of them" in (await page(call)).text
        assert "lacked 1,234 of them" in (await call("GET", "/sources/kev")).text
        assert "were lost" not in (await call("GET", "/sign-in")).text
        assert "storage_service_lost_changes_total 1234.0" in (await call("GET", "/metrics")).text


def signed_in(file: Path, **limits: object) -> str:
    """Store a token, and return it."""
    with closing(open_database(file)) as connection:
        return add_token(
            connection,
            "ann",
            datetime.now(UTC),
            read_only=bool(limits.get("read_only")),
            prefix=str(limits.get("prefix", "")),
        )


async def sign_in(address: str, token: str, to: str = "/") -> tuple[aiohttp.ClientResponse, str]:
    """Send the form as a browser does; return the answer and the cookie."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{address}/sign-in",
            data={"token": token, "to": to},
            headers={"Origin": address},
            allow_redirects=False,
        ) as response,
    ):
        cookie = response.cookies.get(COOKIE)
        return response, cookie.OutputString() if cookie else ""


async def test_browser_signs_in_and_out(tmp_path: Path) -> None:
    """Without a session each page leads to the form and back; the cookie is no script's."""
    async with serving(tmp_path / "w.db", token=TOKEN) as address, calling(address) as call:
        away = await call("GET", "/sources/kev?moved=true", allow_redirects=False)
        assert away.status == 303
        assert away.headers["Location"] == "/sign-in?to=%2Fsources%2Fkev%3Fmoved%3Dtrue"
        assert (
            'value="/sources/kev?moved=true"' in (await call("GET", away.headers["Location"])).text
        )
        wrong, cookie = await sign_in(address, "guess")
        assert (wrong.status, cookie) == (401, "")
        right, cookie = await sign_in(address, TOKEN, "/sources/kev?moved=true")
        assert (right.status, right.headers["Location"]) == (303, "/sources/kev?moved=true")
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert f"Max-Age={SESSION_SECONDS};" in cookie
        session = {"Cookie": cookie.partition(";")[0]}
        shown = await call("GET", "/", headers=session)
        assert (shown.status, "Sign out" in shown.text) == (200, True)
        assert (await call("GET", "/api/v1/watermarks", headers=session)).status == 401
        out = await call("POST", "/sign-out", headers=session, allow_redirects=False)
        assert (out.status, f'{COOKIE}=""' in out.headers["Set-Cookie"]) == (303, True)


@pytest.mark.parametrize(
    "to", ["https://evil.example", "//evil.example", "/\\evil.example", "x", "", "/a\r\nX: y"]
)
async def test_sign_in_leads_to_no_other_site(tmp_path: Path, to: str) -> None:
    """An address of another site after signing in is the list of sources instead."""
    async with serving(tmp_path / "w.db", token=TOKEN) as address:
        answer, _ = await sign_in(address, TOKEN, to)
        assert (answer.status, answer.headers["Location"]) == (303, "/")


async def test_form_of_another_site_signs_nobody_in(tmp_path: Path) -> None:
    """A page elsewhere cannot send the form."""
    async with serving(tmp_path / "w.db", token=TOKEN) as address, calling(address) as call:
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = await call(
                "POST", "/sign-in", data={"token": TOKEN}, headers=headers, allow_redirects=False
            )
            assert answer.status == 403


async def test_session_ends_with_its_token(tmp_path: Path) -> None:
    """With a revoked token, and with what is none, the form is shown again."""
    file = tmp_path / "w.db"
    token = signed_in(file)
    async with serving(file) as address, calling(address) as call:
        _, cookie = await sign_in(address, token)
        session = cookie.partition(";")[0]

        async def status(sent: str) -> int:
            return (await call("GET", "/", headers={"Cookie": sent}, allow_redirects=False)).status

        for forged in ("", "1.2.3", f"{token[:-1]}%", "%ff", "\udce9", "ö"):
            assert await status(f"{COOKIE}={forged}") == 303, forged
        assert await status(session) == 200
        with closing(open_database(file)) as connection:
            revoke_token(connection, "ann")
            connection.execute("INSERT INTO tokens VALUES ('else', x'00', 0, '', 0)")
        assert await status(session) == 303


async def test_content_of_the_database_opens_no_session(tmp_path: Path) -> None:
    """Whoever reads a backup has a token's name and digest, and cannot sign in with them."""
    file = tmp_path / "w.db"
    signed_in(file)
    with closing(open_database(file)) as connection:
        [(name, digest)] = connection.execute("SELECT name, digest FROM tokens").fetchall()
    signed = f"9999999999.{name.encode().hex()}"
    signature = hmac.new(bytes(digest), signed.encode(), hashlib.sha256).hexdigest()
    async with serving(file) as address, calling(address) as call:
        for forged in (f"{signed}.{signature}", bytes(digest).hex(), quote(bytes(digest))):
            for route in ("/", "/sources/kev", "/api/v1/watermarks"):
                cookie = {"Cookie": f"{COOKIE}={forged}"}
                answer = await call("GET", route, headers=cookie, allow_redirects=False)
                assert answer.status in (303, 401)


@pytest.mark.parametrize("token", ["a;b", 'a"b', "a,b=%41", "a\\b", TOKEN])
async def test_every_token_opens_a_session(tmp_path: Path, token: str) -> None:
    """A cookie has its own rules of characters, which a token need not know."""
    async with serving(tmp_path / "w.db", token=token) as address, calling(address) as call:
        _, cookie = await sign_in(address, token)
        session = {"Cookie": cookie.partition(";")[0]}
        assert (await call("GET", "/", headers=session, allow_redirects=False)).status == 200


async def test_token_of_a_prefix_shows_its_sources_alone(tmp_path: Path) -> None:
    """The list has no other source and no other number; other pages are refused."""
    file = tmp_path / "w.db"
    store = await WatermarkDatabase.open(file)
    for source_id in ("a/1", "a/2", "b/1"):
        await store.put(source_id, WatermarkUpdate(timestamp=datetime(2025, 1, 1, tzinfo=UTC)))
    await store.close()
    token = signed_in(file, prefix="a/")
    async with serving(file) as address, calling(address) as call:
        _, cookie = await sign_in(address, token)
        session = {"Cookie": cookie.partition(";")[0]}
        shown = Page(await call("GET", "/?search=1", headers=session))
        assert shown.rows() == ["/sources/a%2F1"]
        assert "2 sources" in Page(await call("GET", "/", headers=session)).text
        assert (await call("GET", "/sources/b%2F1", headers=session)).status == 403
        assert (await call("GET", "/sources/a%2F1", headers=session)).status == 200


@of_a_file
async def test_pages_leave_the_database_as_it_is(call: Caller, tmp_path: Path) -> None:
    """Looking at pages writes no history."""
    await call("PUT", path("kev"), success("2025-01-01T00:00:00Z"))
    for where in ("/", "/sources/kev", "/?state=ok"):
        await page(call, where)
    with closing(sqlite3.connect(tmp_path / "watermarks.db")) as connection:
        assert connection.execute("SELECT count(*) FROM history").fetchone() == (1,)
