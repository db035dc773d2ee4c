"""One stage and one browser for the tests of this folder, which `make e2e` runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from demo.stage import PROJECT
from tests.e2e.pages import UIS, Pages
from tests.e2e.stage import SCREENSHOTS, SECONDS, Stage, stage

_FLAGS = [
    "--headless",
    "--no-sandbox",  # which root has not
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]


@pytest_asyncio.fixture(scope="session", loop_scope="session", name="stage")
async def _stage() -> AsyncIterator[Stage]:
    """Run all that there is to meet, once."""
    async with stage() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Run the machine's Chromium."""
    expect.set_options(timeout=SECONDS * 1000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=os.environ["CHROMIUM"], args=_FLAGS
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(
    stage: Stage, browser: Browser, request: pytest.FixtureRequest
) -> AsyncIterator[Page]:
    """Open a page that reaches loopback only, and keep how it looked at the end."""
    page = await browser.new_page(viewport={"width": 1100, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(SECONDS * 1000)
    await page.route(lambda url: not url.startswith("http://127.0.0.1:"), lambda it: it.abort())
    yield page
    await page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    await page.close()


@pytest.fixture(params=sorted(UIS))
def ui(request: pytest.FixtureRequest, page: Page, stage: Stage) -> Pages:
    """Return each of Prefect's two UIs in turn."""
    return UIS[request.param](page, stage)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the screenshots are."""
    terminalreporter.write_line(f"Screenshots: {SCREENSHOTS.relative_to(PROJECT)}")
