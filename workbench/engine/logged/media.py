"""Keeps images and texts that the training script logs, bounded in size and number.

An array is copied in the step and made a PNG in a thread of its own. Of one name ``MOST_KEPT`` are kept at most: when
there are as many, every second one goes, and from then on every second call is taken, then every fourth, and so on.
"""

from __future__ import annotations

import hashlib
import io
import queue
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.core import background
from workbench.core.records import EventKind, MediaRecord
from workbench.engine.base.strategy import Strategy
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.logged.media import MOST_KEPT

MOST_NAMES = 50
#: characters of a text, pixels along the longer side of an image, bytes of its PNG
LONGEST_TEXT = 10_000
LONGEST_SIDE = 1024
MOST_BYTES = 2**20
#: pixels that are taken at all
_MOST_ELEMENTS = 2**26
#: images that wait to be written; more are left out
_MOST_WAITING = 16
FOLDER = "media"


@dataclass(slots=True)
class _Kept:
    """Of one name: calls so far, the distance of those that are taken, and the files."""

    calls: int = 0
    every: int = 1
    files: list[Path] = field(default_factory=list)
    count: int = 0


class LoggedMedia:
    """Images and texts of one rank."""

    def __init__(self, log: RankLogWriter, strategy: Strategy) -> None:
        self._log = log
        self._strategy = strategy
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._waiting: queue.Queue[Any] = queue.Queue(_MOST_WAITING)
        self._thread: Any = None

    def take(self, kind: str, step: int, name: str, given: Any) -> str:
        """Take one; what is wrong with it, or ""."""
        kept = self._kept.get((kind, name))
        if kept is None:
            if len(self._kept) >= MOST_NAMES:
                return f"the first {MOST_NAMES} names of images and texts are kept, and others are left out"
            kept = self._kept[kind, name] = _Kept()
        kept.calls += 1
        if (kept.calls - 1) % kept.every:
            return ""
        return self._take_text(step, name, given, kept) if kind == "text" else self._take_image(step, name, given, kept)

    def finish(self) -> None:
        """Write what waits."""
        if self._thread is not None and self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._thread = None

    def _take_text(self, step: int, name: str, text: Any, kept: _Kept) -> str:
        if not isinstance(text, str):
            return f"a {type(text).__name__} is not a text: pass a str"
        shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ... ({len(text):,} characters)"
        self._log.append(MediaRecord(step=step, rank=self._strategy.rank, name=name, kind="text", text=shown))
        kept.count += 1
        if kept.count >= MOST_KEPT:
            kept.count //= 2
            kept.every *= 2
        return ""

    def _take_image(self, step: int, name: str, image: Any, kept: _Kept) -> str:
        try:
            taken = _taken(image)
        except Exception as error:  # a figure or picture of the script's may raise anything when it is drawn or copied
            return str(error) or type(error).__name__
        if self._thread is None:
            self._thread = background.thread(self._loop, name="logged-images", failed=self._failed)
            self._thread.start()
        try:
            self._waiting.put_nowait((step, name, taken, kept))
        except queue.Full:
            return f"{_MOST_WAITING} images are still being written, so one is left out: log images less often"
        return ""

    def _loop(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            step, name, taken, kept = waiting
            try:
                self._keep(step, name, _png(taken), kept)
            except Exception as error:  # of this picture: the others are written
                self._strategy.tell(f"log_image_{name}", f"log.image({name!r}, ...) was not written: {error}")

    def _failed(self, error: BaseException) -> None:
        text = f"images are no longer written: {background.described(error)}"
        self._log.event(EventKind.WARNING, "log_images", text)

    def _keep(self, step: int, name: str, made: tuple[bytes, int, int], kept: _Kept) -> None:
        data, width, height = made
        mark = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=3).hexdigest()
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name)[:40]
        folder = self._log.directory / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        file = folder / f"{plain}-{mark}-step-{step:06d}.png"
        file.write_bytes(data)
        if file not in kept.files:
            kept.files.append(file)
        where = f"{self._log.directory.name}/{FOLDER}/{file.name}"
        self._log.append(
            MediaRecord(
                step=step, rank=self._strategy.rank, name=name, kind="image", file=where, width=width, height=height
            )
        )
        if len(kept.files) >= MOST_KEPT:
            for old in kept.files[1::2]:
                old.unlink(missing_ok=True)
            kept.files = kept.files[::2]
            kept.every *= 2


def _taken(image: Any) -> Any:
    """A copy that the training does not change any more: a PNG, a PIL image, an array, or a tensor on its device.
    ``TypeError`` for anything else."""
    if hasattr(image, "savefig"):  # matplotlib's figures belong to the thread that draws them
        out = io.BytesIO()
        image.savefig(out, format="png", dpi=100)
        return out.getvalue()
    if isinstance(image, torch.Tensor):
        if hasattr(image, "full_tensor"):
            raise TypeError("a DTensor, of which each rank has a part, is not an image")
        _check_shape(tuple(image.shape), first=True)
        if image.is_complex() or image.is_meta:
            raise TypeError(f"a tensor of type {image.dtype} is not an image")
        return image.detach().to("cpu", copy=True)
    if isinstance(image, np.ndarray):
        _check_shape(image.shape, first=False)
        if image.dtype.kind not in "biuf":
            raise TypeError(f"an array of type {image.dtype} is not an image")
        return image.copy()
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # PIL
        return image.copy()
    raise TypeError(
        f"a {type(image).__name__} is not an image: pass an array, a tensor, a PIL image or a matplotlib figure"
    )


def _check_shape(shape: tuple[int, ...], *, first: bool) -> None:
    if not 0 < np.prod(shape, dtype=np.int64) <= _MOST_ELEMENTS or len(shape) not in (2, 3):
        raise ValueError(f"shape {shape}: an image is height x width, or that with 1, 3 or 4 channels first or last")
    _channel_axis(shape, first=first)


def _channel_axis(shape: tuple[int, ...], *, first: bool) -> int | None:
    """Which axis holds the channels; where both could, the first of a tensor and the last of an array."""
    if len(shape) == 2:
        return None
    for axis in (0, 2) if first else (2, 0):
        if shape[axis] in (1, 3, 4):
            return axis
    raise ValueError(f"shape {shape}: no dimension is 1, 3 or 4, so none can be the channels")


def _png(taken: Any) -> tuple[bytes, int, int]:
    """PNG, width and height, within the bounds."""
    from PIL import Image

    if isinstance(taken, bytes):
        picture: Any = Image.open(io.BytesIO(taken))
    elif isinstance(taken, torch.Tensor | np.ndarray):
        picture = Image.fromarray(_bytes_of(taken))
    else:
        picture = taken
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "LA" else "RGB")
    side = LONGEST_SIDE
    while True:
        shown = picture.copy()
        shown.thumbnail((side, side))
        out = io.BytesIO()
        shown.save(out, format="png")
        if out.tell() <= MOST_BYTES:
            return out.getvalue(), shown.width, shown.height
        side = max(shown.width, shown.height) * 2 // 3


def _bytes_of(taken: torch.Tensor | np.ndarray) -> np.ndarray:
    """Height x width (x channels) as bytes. Integers are from 0 to 255, floats from 0 to 1; others are spread over
    their own range with 0. What is not finite counts as 0."""
    first = isinstance(taken, torch.Tensor)
    array = taken.to(torch.float32).numpy() if isinstance(taken, torch.Tensor) and taken.is_floating_point() else taken
    values = np.asarray(array)
    axis = _channel_axis(values.shape, first=first)
    if axis == 0:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    finite = np.isfinite(values)
    values = np.where(finite, values, 0.0)
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    if low < 0 or high > 1:
        values = (values / 2 - low / 2) / (high / 2 - low / 2)  # the range of the widest floats overflows
    return np.ascontiguousarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))
