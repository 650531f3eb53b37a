"""The live page in a real browser: it follows the run, and leaves a reader alone."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from score_rl.report import render
from score_rl.run import RunDirectory
from score_rl.settings import load
from score_rl.watch import LivePage, LiveServer

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.begin(load("arithmetic"), fresh=False)
    run.append(run.metrics, [{"step": 0, "stage": "base", "stage_step": 0, "validation/acc/t1": 0.5}])
    return run


def trained(run: RunDirectory, steps: int) -> None:
    """As many steps more."""
    done = run.metrics.read_text().count("\n")
    shares = {"acc/t1": 0.25, "acc/t2": 0.5, "unchanged/t2": 0.5}
    run.append(
        run.metrics, [{"step": n, "stage": "stage1", "stage_step": n, **shares} for n in range(done, done + steps)]
    )


@pytest.fixture
def tab(run: RunDirectory) -> Iterator[tuple[Any, str, list[str]]]:
    """A browser's tab, the page's address, and what the browser complained of so far."""
    sync = pytest.importorskip("playwright.sync_api", reason="pip install 'score-rl[dev]'")
    sync.expect.set_options(timeout=30_000)
    server = LiveServer(LivePage(lambda: render([run.path]), [run.path], seconds=0, share=0), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    complaints: list[str] = []
    try:
        with sync.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda asked: None if asked.url.startswith(server.url) else complaints.append(asked.url))
            page.goto(server.url)
            yield page, server.url, complaints
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def marked(page: Any) -> bool:
    """Whether the report is still the one that `mark` has seen, and not a newer one."""
    return bool(shown(page).evaluate("window.seen === true"))


def mark(page: Any) -> None:
    shown(page).evaluate("window.seen = true")


def shown(page: Any) -> Any:
    """The report's frame, which may still be on its way."""
    frame = page.locator("iframe").element_handle().content_frame()
    frame.wait_for_url("**/report.html*")
    return frame


def test_the_page_follows_the_run_and_waits_while_somebody_reads(
    run: RunDirectory, tab: tuple[Any, str, list[str]]
) -> None:
    from playwright.sync_api import expect

    page, _, complaints = tab
    report, status = page.frame_locator("iframe"), page.locator("#status")
    expect(status).to_contain_text("up to date")
    mark(page)

    with page.expect_event("framenavigated"):
        trained(run, 3)
    assert not marked(page)
    expect(status).to_contain_text("up to date")
    mark(page)

    report.locator("body").click(position={"x": 5, "y": 5})
    trained(run, 3)
    expect(status).to_contain_text("news waits while you are in the page")
    assert marked(page)
    with page.expect_event("framenavigated"):
        status.click()
    expect(status).to_contain_text("up to date")

    page.uncheck("#follow")
    mark(page)
    trained(run, 3)
    expect(status).to_have_text("there is news")
    assert marked(page)
    assert complaints == []
