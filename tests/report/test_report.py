"""report.html in a real browser: it opens without a request, its controls work, by keyboard too."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

from segformer_spark.config.load import load_config
from segformer_spark.errors import UserError
from segformer_spark.evaluation.evaluate import EvaluateOptions, run_evaluation
from segformer_spark.evaluation.verify import verify_evaluation
from segformer_spark.report.render import write_report
from segformer_spark.report.templating import number, score, seconds
from tests.ranks import Group, run_on_ranks
from tests.verbs import leave

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


def evaluate(group: Group, run: str, output: str) -> None:
    options = EvaluateOptions(Path(run) / "best", "val", Path(output), num_worst=3)
    run_evaluation(load_config(Path(run) / "config.yaml"), options, group)


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run with an evaluation and a report."""
    path = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("reported") / "run"))
    run_on_ranks(1, evaluate, str(path), str(path / "evaluation" / "val"))
    assert leave("report", str(path)) == 0
    return path


@pytest.fixture(scope="module")
def page(run: Path) -> Iterator[tuple[Page, list[str]]]:
    """The report, opened from disk, and everything that the browser complained of or asked for."""
    if CHROMIUM is None:
        if os.environ.get("CHROMIUM") == "required":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    noticed: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        opened = browser.new_page(viewport={"width": 1200, "height": 900})
        opened.on("console", lambda message: noticed.append(f"console: {message.text}"))
        opened.on("pageerror", lambda error: noticed.append(f"error: {error}"))
        opened.on("request", lambda asked: noticed.append(asked.url) if not asked.url.startswith("data:") else None)
        opened.goto((run / "report.html").as_uri())
        yield opened, noticed
        browser.close()


def layers(page: Page, within: str) -> list[str]:
    return [image.get_attribute("alt") or "" for image in page.locator(within).locator("img").all()]


def test_it_opens_from_disk_without_a_request(page: tuple[Page, list[str]], run: Path) -> None:
    opened, noticed = page
    opened.wait_for_selector(".tile img")
    assert noticed == [(run / "report.html").as_uri()]
    assert all(opened.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)"))
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing runs off"


def test_layers_are_switched_by_mouse_and_keyboard(page: tuple[Page, list[str]]) -> None:
    opened, _ = page
    first = ".tile >> nth=0"
    assert layers(opened, first) == ["input", "prediction"]
    opened.click("[data-layer=truth] >> nth=0")
    assert layers(opened, first) == ["input", "truth"]
    opened.keyboard.press("4")
    assert layers(opened, first) == ["input", "error"]
    opened.keyboard.press("1")
    assert layers(opened, first) == ["input"]
    opened.keyboard.press("3")


def test_a_cell_of_the_confusion_matrix_opens_its_images(page: tuple[Page, list[str]], run: Path) -> None:
    opened, noticed = page
    opened.click("[data-cell] >> nth=0")
    assert opened.is_visible("#viewer")
    index = json.loads((run / "evaluation" / "val" / "gallery.json").read_text())
    cell = (opened.get_attribute("[data-cell] >> nth=0", "data-cell") or "").partition(":")[2]
    at, pixels = index["cells"][cell][0]
    assert opened.inner_text("#viewer-name") == index["images"][str(at)]["name"]
    assert f"{pixels:,} pixels" in opened.inner_text("#viewer-list")
    before = opened.evaluate("document.getElementById('viewer-stack').getBoundingClientRect().width")
    opened.keyboard.press("+")
    after = opened.evaluate("document.getElementById('viewer-stack').getBoundingClientRect().width")
    assert after == pytest.approx(2 * before, rel=0.01)
    opened.keyboard.press("Escape")
    assert not opened.is_visible("#viewer")
    assert len(noticed) == 1


def test_a_tile_opens_with_the_enter_key(page: tuple[Page, list[str]]) -> None:
    opened, _ = page
    opened.focus(".tile >> nth=1")
    opened.keyboard.press("Enter")
    assert opened.is_visible("#viewer")
    assert opened.inner_text(".tile >> nth=1").startswith(opened.inner_text("#viewer-name")[:10])
    opened.click("#close")


def test_figures_are_those_of_the_evaluation(page: tuple[Page, list[str]], run: Path) -> None:
    opened, _ = page
    metrics = json.loads((run / "evaluation" / "val" / "results.json").read_text())
    text = opened.inner_text("body")
    assert score(metrics["miou"]) in text
    assert score(metrics["pixel_accuracy"]) in text
    assert "completed" in text
    digest = hashlib.sha256((run / "evaluation" / "val" / "SHA256SUMS").read_bytes()).hexdigest()
    assert digest in text
    markdown = (run / "report.md").read_text()
    assert score(metrics["miou"]) in markdown
    assert digest in markdown


def test_the_report_of_an_evaluation_is_verified_with_it(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "evaluation" / "val", tmp_path / "val"))
    path = write_report(folder)
    assert verify_evaluation(folder).faults == []
    assert path.stat().st_size < 10e6
    path.write_text(path.read_text().replace("Evaluation:", "evaluation:"))
    assert verify_evaluation(folder).faults == ["report.html: changed"]
    write_report(folder)
    sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(sums[:-1]))
    assert "report.html: shows another digest than that of SHA256SUMS" in verify_evaluation(folder).faults


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run directory nor a folder that `evaluate` wrote"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (score(None), "-"),
        (score(0.12345), "0.1235"),
        (number(1234), "1,234"),
        (number(2_500_000_000), "2.5 billion"),
        (seconds(0.0123), "12 ms"),
        (seconds(90), "90.0 s"),
        (seconds(7300), "2.0 h"),
        (seconds(None), "-"),
    ],
)
def test_numbers_are_short(shown: str, expected: Any) -> None:
    assert shown == expected
