"""Prefect's pages as a person uses them: the form of a deployment, a run, an artifact."""

from __future__ import annotations

import asyncio
import contextlib
from io import BytesIO

from PIL import Image
from playwright.async_api import Locator, Page, expect

from tests.e2e.stage import SCREENSHOTS, SERVICE_BLOCK, SINK_BLOCK, Stage

# The address changes before the page does, and the page before has other runs and artifacts: only
# runs have a tab of this name.
_OF_RUNS = "Job Variables"


async def keep(page: Page, name: str) -> None:
    """Keep a picture of the whole page, as a window that is tall enough shows it."""
    height = await page.evaluate("document.documentElement.scrollHeight")
    await page.set_viewport_size({"width": 1100, "height": max(900, height)})
    picture = Image.open(BytesIO(await page.screenshot(animations="disabled")))
    # A page has few colours: with a palette, the documents can afford it.
    picture.convert("RGB").quantize(64).save(SCREENSHOTS / f"{name}.png", optimize=True)
    await page.set_viewport_size({"width": 1100, "height": 900})


class Form:
    """The form that starts a run of the deployment."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def open(self, stage: Stage) -> None:
        """Open it, and wait until it shows its fields."""
        await self._page.goto(stage.form)
        await expect(self.text("Source id")).to_have_value("threatfox")

    def text(self, title: str) -> Locator:
        """Return the field of a text."""
        return self._page.get_by_role("textbox", name=title)

    def number(self, title: str) -> Locator:
        """Return the field of a number."""
        return self._page.get_by_role("spinbutton", name=title)

    async def fill(self, stage: Stage, source_id: str, run: str) -> None:
        """Say what to collect, under which name, and with which blocks."""
        await self.text("Run Name").fill(run)
        await self.text("Address").fill(stage.feed_url)
        await self.text("Source id").fill(source_id)
        await self._choose("LADON Record Sink", 0, SINK_BLOCK)
        await self._choose("LADON Storage Service", 1, SERVICE_BLOCK)

    async def _choose(self, block_type: str, position: int, block: str) -> None:
        await self._page.get_by_role("tab", name="Block").nth(position).click()
        panel = self._page.get_by_role("tabpanel", name="Block").filter(
            has=self._page.get_by_role("img", name=block_type)
        )
        await panel.get_by_role("button", name="Select a block").click()
        await self._page.get_by_role("option", name=block, exact=True).click()
        await expect(panel.get_by_role("button", name="Select a block")).to_have_text(block)
        await expect(self._page.get_by_role("option")).to_have_count(0)

    async def see_logos(self) -> None:
        """Look whether both blocks have theirs: what is no picture cannot be decoded."""
        for block_type in ("LADON Record Sink", "LADON Storage Service"):
            logo = self._page.get_by_role("img", name=block_type)
            await logo.evaluate("logo => logo.decode()")

    async def submit(self) -> None:
        """Press the button."""
        await self._page.get_by_role("button", name="Submit").click()

    async def start(self, run: str) -> None:
        """Press it, and follow the list of runs, where it leads, to the page of this run."""
        link = self._page.get_by_role("main").get_by_role("link", name=run, exact=True)
        # Prefect answers "Unknown error while creating flow run" where its SQLite was locked for
        # too long, and the notice stays; its own client repeats, too.
        for _ in range(2):
            await self.submit()
            with contextlib.suppress(AssertionError):
                await expect(link).to_be_visible(timeout=45_000)
                break
        else:
            await self.submit()
        await link.click()
        await self._page.wait_for_url("**/runs/flow-run/**")
        await expect(self._page.get_by_role("tab", name=_OF_RUNS)).to_be_visible()


async def collect(page: Page, stage: Stage, source_id: str, run: str) -> None:
    """Fill the form, submit it, and open the page of the run that it starts."""
    form = Form(page)
    await form.open(stage)
    await form.fill(stage, source_id, run)
    await form.start(run)


async def ends(page: Page, state: str) -> None:
    """Watch the run until it ends in this state."""
    shown = page.get_by_role("main").get_by_text(state, exact=True)
    await expect(shown.first).to_be_visible()


async def see_in_log(page: Page, text: str) -> None:
    """Look for a line in the log of a run that has ended.

    Prefect stores the last lines after the state, and its page asks for none then: one reloads.
    """
    await page.get_by_role("tab", name="Logs").click()
    async with asyncio.timeout(60):
        while True:
            await page.reload()
            with contextlib.suppress(AssertionError):
                await expect(page.get_by_role("log")).to_contain_text(text, timeout=3000)
                return


async def open_artifact(page: Page, key: str) -> Locator:
    """Go from a run to what it left under this key, and return the text of it."""
    await page.get_by_role("tab", name="Artifacts").click()
    await page.get_by_role("link", name=key).click()
    await page.wait_for_url("**/artifacts/artifact/**")
    await expect(page.get_by_role("tab", name=_OF_RUNS)).to_have_count(0)
    panel = page.get_by_role("tabpanel", name="Artifact", exact=True)
    await expect(panel.get_by_role("table").first).to_be_visible()
    return panel


def value(artifact: Locator, name: str) -> Locator:
    """Return the cell beside the one that says ``name``."""
    row = artifact.get_by_role("row").filter(
        has=artifact.page.get_by_role("cell", name=name, exact=True)
    )
    return row.get_by_role("cell").nth(1)
