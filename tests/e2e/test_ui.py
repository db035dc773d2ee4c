"""A person starts collections in Prefect's UI, is told of mistakes, and reads how they went."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import Page, expect

from ladon_storage import StorageServiceClient
from tests.e2e.pages import Form, collect, ends, keep, open_artifact, see_in_log, value
from tests.e2e.stage import Stage, flow_runs
from tests.tables import table

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_mistake_is_refused_and_the_corrected_form_collects(page: Page, stage: Stage) -> None:
    """The form names the mistake and starts nothing; corrected, the artifact has true numbers."""
    form = Form(page)
    await form.open(stage)
    await form.fill(stage, "sample-feed", "First collection")
    await form.see_logos()
    await keep(page, "form")
    overlap = form.number("Overlap (hours)")
    await overlap.fill("-3")
    await form.submit()
    await expect(overlap).to_be_focused()
    complaint = await overlap.evaluate("field => field.validationMessage")
    assert "greater than or equal to 0" in complaint
    await keep(page, "refused")
    assert "First collection" not in [run.name for run in await flow_runs()]

    await overlap.fill("6")
    await form.start("First collection")
    await ends(page, "Completed")
    await see_in_log(page, "Source 'sample-feed' is collected: 32 new")
    await expect(page.get_by_role("link", name="Deployment threatfox")).to_be_visible()
    await expect(page.locator("main canvas")).to_be_visible()
    await keep(page, "run")

    artifact = await open_artifact(page, "ladon-sample-feed")
    await keep(page, "artifact")
    stored = [row for row in table(stage.sink, "source_id") if row == ("sample-feed",)]
    assert len(stored) == len(stage.feed.shown) > 1
    await expect(value(artifact, "records read")).to_contain_text(f"{len(stored)} on 1 page")
    await expect(value(artifact, "new or changed")).to_have_text(str(len(stored)))
    await expect(value(artifact, "from the future, only stored")).to_have_text("1")
    await expect(value(artifact, "watermark before")).to_have_text("never collected")
    async with StorageServiceClient(stage.service.url) as client:
        watermark = await client.get_watermark("sample-feed")
    assert watermark
    assert watermark.last_successful_timestamp
    shown = f"{watermark.last_successful_timestamp:%Y-%m-%d %H:%M:%S} UTC"
    await expect(value(artifact, "watermark after")).to_have_text(shown)


async def test_run_without_the_service_says_why_it_failed(page: Page, stage: Stage) -> None:
    """The page of the run, and of the source, say in one sentence that the service is away."""
    await collect(page, stage, "interrupted-feed", "Before the outage")
    await ends(page, "Completed")
    await stage.service.stop()
    try:
        await collect(page, stage, "interrupted-feed", "During the outage")
        await ends(page, "Failed")
    finally:
        await stage.service.start()
    why = re.compile(
        re.escape(f"StorageUnhealthyError: The Storage Service at {stage.service.url} is unhealthy")
        + ": it could not be reached.*; see whether it runs"
    )
    await page.get_by_role("tab", name="Details").click()
    await expect(page.get_by_role("tabpanel", name="Details")).to_contain_text(why)
    await keep(page, "failed")

    artifact = await open_artifact(page, "ladon-interrupted-feed")
    await expect(artifact.get_by_role("heading", level=1)).to_have_text("interrupted-feed: failed")
    await expect(artifact.get_by_role("blockquote")).to_contain_text(why)
    runs = artifact.get_by_role("table").last.get_by_role("row")
    await expect(runs).to_have_count(3)
    await expect(runs.nth(1)).to_contain_text("failed")
    await expect(runs.nth(2)).to_contain_text("completed")
    await keep(page, "failed-artifact")


async def test_address_that_is_none_fails_the_run_with_one_sentence(
    page: Page, stage: Stage
) -> None:
    """What the form cannot know to be wrong fails the run at once, and nothing is collected."""
    requests = stage.feed.requests
    form = Form(page)
    await form.open(stage)
    await form.fill(stage, "mistyped-feed", "Mistyped address")
    await form.text("Address").fill("feed.example")
    await form.start("Mistyped address")
    await ends(page, "Failed")
    await page.get_by_role("tab", name="Details").click()
    await expect(page.get_by_role("tabpanel", name="Details")).to_contain_text(
        "source.url: Value error, should be an address such as https://feeds.example.org/"
    )
    assert stage.feed.requests == requests
