"""Logged images and texts in chromium: in the panel by name, rank and step, and in the report, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.static_page import StaticPanel
from tests.fake_media import add_media
from tests.fake_run import make_fake_run
from workbench.report import render

pytestmark = pytest.mark.browser
IMAGE = ".dw-logged .dw-image"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = make_fake_run(tmp_path / "run", steps=40, measures=())
    add_media(path, steps=(10, 20, 30))
    return path


def shown(step: int) -> str:
    return f"() => document.querySelector('.dw-logged').dataset.step === '{step}'"


def test_images_and_texts_are_chosen_and_shown(bare: Any, run: Path) -> None:
    (run / "rank-00000/media/digit-step-000010.png").write_bytes(b"no image")
    panel = StaticPanel(bare, run)
    panel.pump("() => Number(document.querySelector('.dw')?.dataset.points) > 0")
    assert not any("logged_item" in content.get("extra", {}) for content, _ in panel.messages)
    panel.open("samples")
    panel.pump(shown(30))
    assert "Question 30 of rank 0" in bare.locator(".dw-logged .dw-text").inner_text()
    assert not bare.locator(".dw-nothing").is_visible() and not bare.locator(IMAGE).is_visible()

    bare.get_by_label("Name of the image or text").select_option("digit (image)")
    panel.pump(f"() => document.querySelector('{IMAGE}').naturalWidth === 28")
    assert bare.locator(IMAGE).bounding_box()["width"] >= 200, "a small image is magnified"
    assert "step 30, the newest" in bare.locator(".dw-at").inner_text()
    bare.get_by_label("Rank that logged it").select_option("1")
    panel.pump(f"() => document.querySelector('{IMAGE}').alt.includes('rank 1')")
    bare.get_by_role("slider", name="Step").press("ArrowLeft")
    panel.pump(shown(20))
    assert bare.locator(".dw-at").inner_text() == "step 20"

    bare.get_by_label("Rank that logged it").select_option("0")
    bare.get_by_role("slider", name="Step").press("Home")
    panel.pump(shown(10))
    assert "digit-step-000010.png is not a whole PNG" in bare.locator(".dw-logged").inner_text()
    assert not bare.locator(IMAGE).is_visible() and panel.errors == []
    bare.get_by_label("Name of the image or text").select_option("attention map (image)")
    panel.pump(f"() => document.querySelector('{IMAGE}').naturalWidth === 640")
    assert bare.evaluate("document.documentElement.scrollWidth") <= 900
    assert [url for url in panel.requests if not url.startswith(("about:", "blob:", "data:"))] == []
    panel.close()


def test_thumbnails_of_a_report_open(bare: Any, run: Path) -> None:
    report = render(run, light=True)
    bare.context.set_offline(True)
    try:
        bare.goto(report.as_uri())
        pictures = bare.locator(".thumbnails img")
        assert pictures.count() == 9
        assert pictures.evaluate_all("(all) => all.every((image) => image.naturalWidth > 0)")
        wide = bare.locator(".thumbnails img[alt='attention map, step 30']")
        small = wide.bounding_box()["width"]
        wide.click()
        assert wide.bounding_box()["width"] > 2 * small
        assert bare.evaluate("document.documentElement.scrollWidth") <= 900
    finally:
        bare.context.set_offline(False)
