"""The pages of Prefect's two UIs as a person uses them: a form, a run, an artifact."""

from __future__ import annotations

import asyncio
import contextlib
import re
from abc import ABC, abstractmethod
from io import BytesIO

from PIL import Image
from playwright.async_api import Locator, Page, expect

from tests.e2e.stage import SCREENSHOTS, SERVICE_BLOCK, SINK_BLOCK, Stage

_TIMES = 5
_CREATED, _LOCKED = 201, 503
_CREATING = re.compile(r"/create_flow_run$")


class Pages(ABC):
    """One UI in a browser.

    Args:
        page: The browser's page.
        stage: What there is to meet.
    """

    name: str
    """What its pictures are called after."""

    base: str
    """Its path on Prefect's server."""

    def __init__(self, page: Page, stage: Stage) -> None:
        self.page = page
        self.stage = stage

    async def open_form(self) -> None:
        """Open the form of the deployment, and wait until it shows its fields."""
        await self.page.goto(f"{self.stage.prefect}{self.base}{self.stage.form}")
        await expect(self.text("Source id")).to_have_value("threatfox")

    @abstractmethod
    def text(self, title: str) -> Locator:
        """Return the field of a text in a form."""

    @abstractmethod
    def number(self, title: str) -> Locator:
        """Return the field of a number in a form."""

    @abstractmethod
    async def open_blocks(self, title: str) -> None:
        """Choose the tab of blocks of a field."""

    @abstractmethod
    async def choose(self, title: str, block: str) -> None:
        """Choose a block for a field."""

    async def fill(self, source_id: str, run: str) -> None:
        """Say what to collect, under which name, and with which blocks."""
        await self.text("Run Name").fill(run)
        await self.text("Address").fill(self.stage.feed_url)
        await self.text("Source id").fill(source_id)
        await self.choose("Sink", SINK_BLOCK)
        await self.choose("Storage Service", SERVICE_BLOCK)

    @abstractmethod
    async def see_logos(self) -> None:
        """Look whether chosen blocks have their logos: what is no picture cannot be decoded."""

    @abstractmethod
    async def see_refusal(self, title: str, why: str) -> None:
        """Look whether the form says what is wrong with a number."""

    async def submit(self) -> None:
        """Press the button, by the keyboard: a notice may be in front of it."""
        await self.page.get_by_role("button", name="Submit").press("Enter")

    @abstractmethod
    async def follow(self, run: str) -> None:
        """Go to the page of the run that was just started, by what the UI shows of it."""

    async def start(self, run: str) -> None:
        """Create the run, and follow it."""
        await self.create()
        await self.follow(run)
        await self.page.wait_for_url("**/runs/flow-run/**")

    async def create(self) -> None:
        """Press the button until Prefect has the run.

        Prefect answers 503 where its SQLite is locked at that moment. Its own client repeats such a
        request, and its UIs only say "Unknown error" or "Something went wrong": a person presses
        again. Any other answer but the run is a fault.
        """
        for _ in range(_TIMES):
            async with self.page.expect_response(_CREATING) as answered:
                await self.submit()
            status = (await answered.value).status
            if status != _LOCKED:
                break
        assert status == _CREATED, status

    async def collect(self, source_id: str, run: str) -> None:
        """Fill the form, submit it, and open the page of the run that it starts."""
        await self.open_form()
        await self.fill(source_id, run)
        await self.start(run)

    @abstractmethod
    async def open_tab(self, name: str) -> Locator:
        """Open a tab of a run's page, and return its content."""

    @abstractmethod
    async def see_state(self, state: str) -> None:
        """Watch the run until it ends in this state."""

    @abstractmethod
    def log(self) -> Locator:
        """Return the log of a run."""

    async def see_in_log(self, text: str) -> None:
        """Look for a line in the log of a run that has ended.

        Prefect stores the last lines after the state, and its page asks for none then: one reloads.
        """
        await self.open_tab("Logs")
        async with asyncio.timeout(60):
            while True:
                await self.page.reload()
                with contextlib.suppress(AssertionError):
                    await expect(self.log()).to_contain_text(text, timeout=3000)
                    return

    @abstractmethod
    async def open_artifact(self, key: str) -> Locator:
        """Go from a run to what it left under this key, and return the text of it."""

    @abstractmethod
    async def see_reason(self, why: re.Pattern[str]) -> None:
        """Look whether the details of a run say why it failed."""

    async def keep(self, name: str) -> None:
        """Keep a picture of the whole page, as a window that is tall enough shows it."""
        # The first UI scrolls a part of the page, and not the page.
        height = await self.page.evaluate(
            "Math.max(...[...document.querySelectorAll('*')].map(each => each.scrollHeight))"
        )
        await self.page.set_viewport_size({"width": 1100, "height": min(max(900, height), 3000)})
        picture = Image.open(BytesIO(await self.page.screenshot(animations="disabled")))
        # A page has few colours: with a palette, the documents can afford it.
        small = picture.convert("RGB").quantize(64)
        small.save(SCREENSHOTS / f"{name}-{self.name}.png", optimize=True)
        await self.page.set_viewport_size({"width": 1100, "height": 900})


class SecondUi(Pages):
    """The newer UI, which Prefect 3.9 opens."""

    name, base = "v2", "/v2"

    def text(self, title: str) -> Locator:
        """Return the field of a text in a form."""
        return self.page.get_by_role("textbox", name=title)

    def number(self, title: str) -> Locator:
        """Return the field of a number in a form."""
        return self.page.get_by_role("spinbutton", name=title)

    async def open_blocks(self, title: str) -> None:
        """Choose the tab of blocks of a field."""
        await self.page.get_by_role("tab", name="Block").nth(_BLOCKS[title][1]).click()

    async def choose(self, title: str, block: str) -> None:
        """Choose a block for a field."""
        await self.open_blocks(title)
        logo = self.page.get_by_role("img", name=_BLOCKS[title][0])
        panel = self.page.get_by_role("tabpanel", name="Block").filter(has=logo)
        button = panel.get_by_role("button", name="Select a block")
        await button.click()
        await self.page.get_by_role("option", name=block, exact=True).click()
        await expect(button).to_have_text(block)
        await expect(self.page.get_by_role("option")).to_have_count(0)

    async def see_logos(self) -> None:
        """Look whether chosen blocks have their logos."""
        for block_type, *_ in _BLOCKS.values():
            logo = self.page.get_by_role("img", name=block_type)
            await logo.evaluate("logo => logo.decode()")

    async def see_refusal(self, title: str, why: str) -> None:
        """Look whether the form says what is wrong with a number: the browser does."""
        await expect(self.number(title)).to_be_focused()
        said = await self.number(title).evaluate("field => field.validationMessage")
        assert why in said

    async def follow(self, run: str) -> None:
        """Go on from the list of runs, where the form leads."""
        link = self.page.get_by_role("main").get_by_role("link", name=run, exact=True)
        await link.click()
        await self.page.wait_for_url("**/runs/flow-run/**")
        await expect(self.page.get_by_role("tab", name=_OF_RUNS)).to_be_visible()

    async def open_tab(self, name: str) -> Locator:
        """Open a tab of a run's page, and return its content."""
        await self.page.get_by_role("tab", name=name).click()
        return self.page.get_by_role("tabpanel", name=name)

    async def see_state(self, state: str) -> None:
        """Watch the run until it ends in this state."""
        shown = self.page.get_by_role("main").get_by_text(state, exact=True)
        await expect(shown.first).to_be_visible()

    def log(self) -> Locator:
        """Return the log of a run."""
        return self.page.get_by_role("log")

    async def open_artifact(self, key: str) -> Locator:
        """Go from a run to what it left under this key, and return the text of it."""
        await self.open_tab("Artifacts")
        await self.page.get_by_role("link", name=key).click()
        await self.page.wait_for_url("**/artifacts/artifact/**")
        # The address changes before the page does: only runs have a tab of this name.
        await expect(self.page.get_by_role("tab", name=_OF_RUNS)).to_have_count(0)
        panel = self.page.get_by_role("tabpanel", name="Artifact", exact=True)
        await expect(panel.get_by_role("table").first).to_be_visible()
        return panel

    async def see_reason(self, why: re.Pattern[str]) -> None:
        """Look whether the details of a run say why it failed."""
        await expect(await self.open_tab("Details")).to_contain_text(why)


class FirstUi(Pages):
    """The older UI, which Prefect 3.8 opens."""

    name, base = "v1", ""

    def _field(self, title: str) -> Locator:
        label = self.page.locator(
            ":scope > .p-label__header .schema-form-property__label",
            has_text=re.compile(rf"^{re.escape(title)}( \(Optional\))?$"),
        )
        return self.page.locator(".schema-form-property").filter(has=label)

    def text(self, title: str) -> Locator:
        """Return the field of a text in a form."""
        if title == "Run Name":
            return self.page.locator(".flow-run-name-input input")
        return self._field(title).locator("textarea")

    def number(self, title: str) -> Locator:
        """Return the field of a number in a form."""
        return self._field(title).locator("input[type=number]")

    async def open_blocks(self, title: str) -> None:
        """Choose the tab of blocks of a field; it is called as the block's class."""
        tab = self._field(title).get_by_role("button", name=_BLOCKS[title][2], exact=True)
        await tab.click()

    async def choose(self, title: str, block: str) -> None:
        """Choose a block for a field."""
        await self.open_blocks(title)
        chosen = self._field(title).locator(".block-documents-select .p-select-button__control")
        await chosen.press("ArrowDown")
        await self.page.locator(".p-select-option", has_text=block).click()
        await expect(chosen).to_have_text(block)

    async def see_logos(self) -> None:
        """Look whether chosen blocks have their logos."""
        for title in _BLOCKS:
            await self._field(title).get_by_role("img").first.evaluate("logo => logo.decode()")

    async def see_refusal(self, title: str, why: str) -> None:
        """Look whether the form says what is wrong with a number: Prefect's server does."""
        name = title.partition(" ")[0].lower()
        notice = self.page.get_by_text(f"Validation failed for field 'source.{name}'")
        await expect(notice.first).to_contain_text(why)

    async def follow(self, run: str) -> None:
        """Go on from the deployment, where the form leads when the run is scheduled."""
        await self.page.wait_for_url(f"**{self.stage.form.removesuffix('/run')}")
        await self.page.goto(f"{self.stage.prefect}/runs")
        await self.page.get_by_role("link", name=run, exact=True).click()
        await expect(self.page.locator("#job-variables")).to_be_visible()

    async def open_tab(self, name: str) -> Locator:
        """Open a tab of a run's page, and return its content."""
        await self.page.locator(".p-tab", has_text=re.compile(f"^{name}$")).click()
        return self.page.locator(f"#{name.lower()}-content")

    async def see_state(self, state: str) -> None:
        """Watch the run until it ends in this state."""
        badge = self.page.locator(".page-heading-flow-run .state-badge", has_text=state)
        await expect(badge).to_be_visible()

    def log(self) -> Locator:
        """Return the log of a run."""
        return self.page.locator(".logs")

    async def open_artifact(self, key: str) -> Locator:
        """Go from a run to what it left under this key, and return the text of it."""
        content = await self.open_tab("Artifacts")
        await content.get_by_text(key).first.click()
        await self.page.wait_for_url("**/artifacts/artifact/**")
        panel = self.page.locator("#artifact-content")
        await expect(panel.get_by_role("table").first).to_be_visible()
        return panel

    async def see_reason(self, why: re.Pattern[str]) -> None:
        """Look whether the details of a run say why it failed, once all of the text is opened."""
        content = await self.open_tab("Details")
        more = content.get_by_text("See More")
        with contextlib.suppress(AssertionError):
            await expect(more.first).to_be_visible(timeout=5000)
            await more.first.click()
        await expect(self.page.locator("body")).to_contain_text(why)


UIS: dict[str, type[Pages]] = {"v1": FirstUi, "v2": SecondUi}
_BLOCKS = {
    "Sink": ("LADON Record Sink", 0, "RecordSink"),
    "Storage Service": ("LADON Storage Service", 1, "StorageService"),
}
_OF_RUNS = "Job Variables"


def value(artifact: Locator, name: str) -> Locator:
    """Return the cell beside the one that says ``name``."""
    row = artifact.get_by_role("row").filter(
        has=artifact.page.get_by_role("cell", name=name, exact=True)
    )
    return row.get_by_role("cell").nth(1)
