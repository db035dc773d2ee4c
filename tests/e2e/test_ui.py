"""A person starts collections in Prefect's UIs, learns of mistakes, and reads how they went."""

from __future__ import annotations

import asyncio
import re

import pytest
from playwright.async_api import expect
from prefect import get_client

from ladon_storage import StorageServiceClient
from tests.e2e.pages import Pages, value
from tests.e2e.stage import BACKFILL, SECONDS, flow_runs
from tests.tables import table

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_mistake_is_refused_and_the_corrected_form_collects(ui: Pages) -> None:
    """The form names the mistake and starts nothing; corrected, the artifact has true numbers."""
    source, stage = f"sample-feed-{ui.name}", ui.stage
    run = f"First collection {ui.name}"
    await ui.open_form()
    await ui.fill(source, run)
    await ui.see_logos()
    await ui.keep("form")
    overlap = ui.number("Overlap (hours)")
    await overlap.fill("-3")
    await ui.submit()
    await ui.see_refusal("Overlap (hours)", "0")
    await ui.keep("refused")
    assert run not in [each.name for each in await flow_runs()]

    await overlap.fill("6")
    await ui.start(run)
    await ui.see_state("Completed")
    await ui.see_in_log(f"Source '{source}' is collected: 32 new")
    await expect(ui.page.locator("canvas").first).to_be_visible()
    await ui.keep("run")

    artifact = await ui.open_artifact(f"collection-{source}")
    await ui.keep("artifact")
    stored = [row for row in table(stage.sink, "source_id") if row == (source,)]
    assert len(stored) == len(stage.feed.shown) > 1
    await expect(value(artifact, "records read")).to_contain_text(f"{len(stored)} on 1 page")
    await expect(value(artifact, "new or changed")).to_have_text(str(len(stored)))
    await expect(value(artifact, "from the future, only stored")).to_have_text("1")
    await expect(value(artifact, "watermark before")).to_have_text("never collected")
    async with StorageServiceClient(stage.service.url) as client:
        watermark = await client.get_watermark(source)
    assert watermark
    assert watermark.last_successful_timestamp
    shown = f"{watermark.last_successful_timestamp:%Y-%m-%d %H:%M:%S} UTC"
    await expect(value(artifact, "watermark after")).to_have_text(shown)


async def test_run_without_the_service_says_why_it_failed(ui: Pages) -> None:
    """The page of the run, of the source and of all sources say in one sentence what is wrong."""
    source, service = f"interrupted-feed-{ui.name}", ui.stage.service
    await ui.collect(source, f"Before the outage {ui.name}")
    await ui.see_state("Completed")
    await service.stop()
    try:
        await ui.collect(source, f"During the outage {ui.name}")
        await ui.see_state("Failed")
    finally:
        await service.start()
        await service.close_circuit()
    why = re.compile(
        re.escape(f"StorageUnhealthyError: The Storage Service at {service.url} is unhealthy")
        + ": it could not be reached.*; see whether it runs"
    )
    await ui.see_reason(why)
    await ui.keep("failed")
    page = ui.page.url

    artifact = await ui.open_artifact(f"collection-{source}")
    await expect(artifact.get_by_role("heading", level=1)).to_have_text(f"{source}: failed")
    await expect(artifact.get_by_role("blockquote")).to_contain_text(why)
    runs = artifact.get_by_role("table").last.get_by_role("row")
    await expect(runs).to_have_count(3)
    await expect(runs.nth(1)).to_contain_text("failed")
    await expect(runs.nth(2)).to_contain_text("completed")
    await ui.keep("failed-artifact")

    await ui.page.goto(page)
    overview = await ui.open_artifact("ladon-overview")
    row = overview.get_by_role("row").filter(has_text=source)
    await expect(row).to_contain_text("failing")
    await expect(row).to_contain_text("StorageUnhealthyError")
    await ui.keep("overview")


async def test_tab_of_blocks_without_a_block_starts_no_collection(ui: Pages) -> None:
    """The run fails and says which field to fill; nothing goes into another sink."""
    requests, run = ui.stage.feed.requests, f"No block {ui.name}"
    await ui.open_form()
    await ui.text("Run Name").fill(run)
    await ui.text("Address").fill(ui.stage.feed_url)
    await ui.open_blocks("Sink")
    await ui.start(run)
    await ui.see_state("Failed")
    await ui.see_reason(re.compile("The tab Block of Sink has no block; choose one there"))
    assert ui.stage.feed.requests == requests


async def test_kind_of_a_source_is_chosen_without_json(ui: Pages) -> None:
    """The form of any source shows the kind of its deployment in a list, and the others in tabs."""
    async with get_client() as client:
        deployment = await client.read_deployment_by_name(BACKFILL)
    form = f"/deployments/deployment/{deployment.id}/run"
    await ui.page.goto(f"{ui.stage.prefect}{ui.base}{form}")
    main = ui.page.locator("#root, #app")
    for tab in ("Feed", "JSON API", "SQL table", "Own class"):
        await expect(main.get_by_text(tab, exact=True).first).to_be_visible()
    await expect(main.get_by_text("nvd", exact=True).first).to_be_visible()
    await ui.keep("any-source")


async def test_address_that_is_none_fails_the_run_with_one_sentence(ui: Pages) -> None:
    """What the form cannot know to be wrong fails the run at once, and nothing is collected."""
    requests, run = ui.stage.feed.requests, f"Mistyped address {ui.name}"
    await ui.open_form()
    await ui.fill(f"mistyped-feed-{ui.name}", run)
    await ui.text("Address").fill("feed.example")
    await ui.start(run)
    await ui.see_state("Failed")
    await ui.see_reason(
        re.compile(r"Source, Address \(source\.url\): should be an address such as https://")
    )
    assert ui.stage.feed.requests == requests


async def test_run_that_nobody_named_is_named_by_its_source(ui: Pages) -> None:
    """The form's own two words give way to the source and the time."""
    source = f"named-feed-{ui.name}"
    await ui.open_form()
    await ui.fill(source, f"Placeholder-{'Fossa' if ui.name == 'v2' else 'nebula'}")
    await ui.create()
    async with asyncio.timeout(SECONDS):
        while not (named := [each for each in await flow_runs() if source in each.name]):
            await asyncio.sleep(0.2)
    assert re.fullmatch(rf"{source} \d\d:\d\d", named[0].name)
    await ui.page.goto(f"{ui.stage.prefect}{ui.base}/runs/flow-run/{named[0].id}")
    await ui.see_state("Completed")
