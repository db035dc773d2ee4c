"""The service's status page in a browser: readable, for screen readers too, and without scripts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, expect

from ladon_storage.models import WatermarkStatus, WatermarkUpdate
from ladon_storage.server.serving import serving
from ladon_storage.server.store import WatermarkDatabase
from tests.e2e.stage import SCREENSHOTS

MARKUP = '<script>document.title = "broken"</script><img src=x onerror=\'document.title="broken"\'>'
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
TOKEN = "correct-horse-battery"


async def filled(file: Path, count: int) -> None:
    """Write sources in each state, with markup in names and errors, and as many more."""
    store = await WatermarkDatabase.open(file)
    now = datetime.now(UTC)
    ledger = {
        "records_delivered": 20, "records_quarantined": 3, "reasons": {MARKUP: 3},
        "lateness_p99_seconds": 90.0, "overlap_seconds": 86_400.0,
    }  # fmt: skip
    await asyncio.gather(
        *(
            store.put(f"feed-{number:04}", WatermarkUpdate(timestamp=now, ledger=ledger))
            for number in range(count - 2)
        )
    )
    for number in range(12):
        failed = WatermarkUpdate(
            timestamp=now, status=WatermarkStatus.FAILED, error_message=MARKUP, run_id=f"r{number}"
        )
        await store.put(MARKUP[:100], failed)
    await store.put("kev", WatermarkUpdate(timestamp=now - timedelta(days=2), ledger=ledger))
    await store.close()


@pytest.mark.parametrize("count", [0, 3, 5000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.asyncio(loop_scope="session")
async def test_page_meets_the_rules_of_screen_readers(
    browser: Browser, tmp_path: Path, count: int, scheme: Literal["light", "dark"]
) -> None:
    """No rule is broken in either theme; on a phone nothing is wider than the screen."""
    if count:
        await filled(tmp_path / "w.db", count)
    limits = {"kev": timedelta(days=1)}
    async with serving(tmp_path / "w.db", limits=limits, prefect_url="http://x") as address:
        # As a person without scripts sees it; the rules are checked by a script of the browser.
        context = await browser.new_context(color_scheme=scheme, bypass_csp=True)
        page = await context.new_page()
        for path in ("/", "/sources/kev", "/?search=nothing") if count else ("/",):
            await page.goto(address + path)
            found: Any = await Axe().run(page, options={"runOnly": RULES})
            broken = [
                f"{each['id']}: {each['nodes'][0]['html']}" for each in found.response["violations"]
            ]
            assert not broken, (path, broken)
            for width in (360, 1280):
                await page.set_viewport_size({"width": width, "height": 900})
                wide = await page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (path, width, wide)
                assert await page.title() != "broken"
            await page.screenshot(path=SCREENSHOTS / f"status-{scheme}-{count}.png")
        await context.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_service_that_takes_no_writes_says_so_to_each_reader(
    browser: Browser, tmp_path: Path
) -> None:
    """The fault stands above the sources, within the same rules and the width of a phone."""
    file = tmp_path / "w.db"
    await filled(file, 3)
    async with serving(file) as address, aiohttp.ClientSession() as session:
        written = {"timestamp": "2025-01-01T00:00:00Z", "status": "success"}
        async with session.put(f"{address}/api/v1/watermarks/new", json=written) as answer:
            assert answer.status == 201
        (tmp_path / "w.db-wal").unlink()
        context = await browser.new_context(bypass_csp=True, viewport={"width": 360, "height": 900})
        page = await context.new_page()
        await page.goto(address)
        await expect(page.get_by_text("takes no writes")).to_be_visible()
        await expect(page.get_by_role("link", name="kev")).to_be_visible()
        found: Any = await Axe().run(page, options={"runOnly": RULES})
        assert not [each["id"] for each in found.response["violations"]]
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        await context.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_person_signs_in_finds_a_source_and_signs_out(
    browser: Browser, tmp_path: Path
) -> None:
    """From the form to a source's page and back, with scripts switched off."""
    await filled(tmp_path / "w.db", 300)
    async with serving(tmp_path / "w.db", token=TOKEN) as address:
        context = await browser.new_context(java_script_enabled=False)
        page = await context.new_page()
        await page.goto(f"{address}/sources/kev")
        await page.get_by_label("Token").fill("guess")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_have_text("This is no token of this service.")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", name="kev")).to_be_visible()
        await page.get_by_role("link", name="All sources").click()
        await page.get_by_role("searchbox", name="Name").fill("FEED-0123")
        await page.get_by_role("button", name="Show").click()
        await page.get_by_role("link", name="feed-0123").click()
        await expect(page.get_by_role("heading", name="feed-0123")).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await page.goto(address)
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await context.close()
