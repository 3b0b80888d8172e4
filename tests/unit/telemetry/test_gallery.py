"""Logged images and texts as they are shown: what is listed, and what is said of files that are gone or damaged."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fake_media import add_media, png, ring
from tests.fake_run import fake_spec, write_spec
from workbench.core.records import MediaRecord
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.logged import gallery
from workbench.telemetry.logged.gallery import Gallery, is_whole_png
from workbench.telemetry.store import Store


def opened(run: Path) -> Gallery:
    store = Store(run)
    store.refresh()
    found = Gallery(run)
    found.take(store.table("media"))
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_spec(tmp_path, fake_spec())
    add_media(tmp_path, steps=(10, 20, 30))
    return tmp_path


def test_names_are_listed_with_the_steps_of_each_rank(run: Path) -> None:
    names = {(name.kind, name.name): name.steps for name in opened(run).names()}
    both = {0: [10, 20, 30], 1: [10, 20, 30]}
    assert names == {
        ("text", "answer"): both,
        ("image", "digit"): both,
        ("image", "attention map"): {0: [10, 20, 30]},
    }


def test_an_item_is_what_was_logged(run: Path) -> None:
    found = opened(run)
    image = found.item("image", "digit", 1, 20)
    pixels = np.asarray(Image.open(io.BytesIO(image.png)))
    np.testing.assert_array_equal(pixels, ring(27).astype(np.uint8))
    assert (image.width, image.height, image.problem) == (28, 28, "")
    assert found.item("text", "answer", 1, 20).text.startswith("Question 20 of rank 1\n")


def test_texts_of_one_step_are_shown_together_within_a_bound(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec())
    with RankLogWriter(tmp_path, 0) as log:
        for text in ("one", "two", "x" * gallery.LONGEST_TEXT):
            log.append(MediaRecord(step=1, rank=0, name="said", kind="text", text=text))
    text = opened(tmp_path).item("text", "said", 0, 1).text
    assert text.startswith("one\n\ntwo\n\nxxx") and text.endswith(f"({gallery.LONGEST_TEXT + 10:,} characters)")


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "changed": lambda path: path.write_bytes(path.read_bytes()[:60] + b"?" + path.read_bytes()[61:]),
    "no image": lambda path: path.write_bytes(b"<svg onload='alert(1)'/>" * 9),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "huge": lambda path: path.write_bytes(png(np.zeros((1, gallery.LONGEST_SIDE + 1)))),
    "large": lambda path: path.write_bytes(path.read_bytes() + bytes(gallery.MOST_BYTES)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_shown_is_said(run: Path, damage: str) -> None:
    (path,) = run.glob("rank-00000/media/digit-step-000020.png")
    DAMAGES[damage](path)
    found = opened(run)
    item = found.item("image", "digit", 0, 20)
    assert not item.png and path.name in item.problem
    assert found.item("image", "digit", 0, 30).png, "the others are shown"
    assert next(n for n in found.names() if n.name == "digit").steps[0] == [10, 20, 30]


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/hostname", "rank-00000/media/\0.png", "", "spec.toml"])
def test_a_file_that_is_no_image_of_the_run_is_not_read(tmp_path: Path, file: str) -> None:
    write_spec(tmp_path, fake_spec())
    with RankLogWriter(tmp_path, 0) as log:
        log.append(MediaRecord(step=1, rank=0, name="a", kind="image", file=file))
    item = opened(tmp_path).item("image", "a", 0, 1)
    assert not item.png and item.problem.startswith("The image ")


def test_steps_whose_images_were_thinned_out_are_not_listed(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec())
    add_media(tmp_path, ranks=[0], steps=range(1, 71))
    for path in sorted(tmp_path.glob("rank-00000/media/digit-*.png"))[1::2]:
        path.unlink()
    steps = {name.name: name.steps[0] for name in opened(tmp_path).names()}
    assert steps["digit"] == list(range(1, 71, 2)) and len(steps["attention map"]) == 70
    for path in tmp_path.glob("rank-00000/media/*.png"):
        path.unlink()
    found = opened(tmp_path)
    assert len(next(n for n in found.names() if n.name == "digit").steps[0]) == 70, "a copy without its images says so"
    assert "missing" in found.item("image", "digit", 0, 70).problem


def test_a_log_of_many_names_is_bounded(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec())
    with RankLogWriter(tmp_path, 0) as log:
        for number in range(gallery.MOST_NAMES + 7):
            log.append(MediaRecord(step=1, rank=0, name=f"name {number}", kind="text", text="x"))
    found = opened(tmp_path)
    assert len(found.names()) == gallery.MOST_NAMES and len(found.left_out) == 7


def test_whole_images_are_told_from_others() -> None:
    whole = png(ring(3))
    assert is_whole_png(whole)
    assert not any(is_whole_png(whole[:end]) for end in range(len(whole)))
    assert not any(is_whole_png(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]) for at in range(len(whole)))
