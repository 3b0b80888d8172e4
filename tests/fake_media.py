"""Images and texts as a cell logs them, in a run directory that has none yet."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from workbench.core.records import MediaRecord
from workbench.rundir.log import RankLogWriter, rank_directory


def png(pixels: np.ndarray) -> bytes:
    """A PNG of height x width (grey) or height x width x 3 bytes."""
    height, width = pixels.shape[:2]
    kind = 0 if pixels.ndim == 2 else 2
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in pixels)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows)),
             (b"IEND", b""))  # fmt: skip
    chunks = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
              for name, data in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def ring(step: int, side: int = 28) -> np.ndarray:
    """A bright ring whose radius grows with the step: height x width."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    return 255 * np.exp(-((np.hypot(y, x) - side * (0.1 + 0.003 * (step % 120))) ** 2) / (0.006 * side**2))


def scene(step: int, width: int = 640, height: int = 360) -> np.ndarray:
    """A wide picture in colour: height x width x 3."""
    y, x = np.mgrid[:height, :width] // 20 / 4
    return np.stack([127 + 120 * np.sin(x + k + step / 20) * np.cos(y - k) for k in range(3)], axis=-1)


def add_media(run: Path, *, ranks: Iterable[int] = (0, 1), steps: Iterable[int] = range(10, 121, 10)) -> None:
    """Log the image ``digit`` and the text ``answer`` on each rank, and the image ``attention map`` on the first."""
    for number, rank in enumerate(ranks):
        folder = rank_directory(run, rank) / "media"
        folder.mkdir(parents=True, exist_ok=True)
        with RankLogWriter(run, rank) as log:
            for step in steps:
                text = f"Question {step} of rank {rank}\nThe ring has a radius of {0.3 * (step % 120):g} pixels."
                log.append(MediaRecord(step=step, rank=rank, name="answer", kind="text", text=text))
                images = [("digit", ring(step + 7 * rank))] + [("attention map", scene(step))] * (number == 0)
                for name, pixels in images:
                    file = folder / f"{name.replace(' ', '-')}-step-{step:06d}.png"
                    file.write_bytes(png(pixels))
                    height, width = pixels.shape[:2]
                    where = str(file.relative_to(run))
                    log.append(MediaRecord(step=step, rank=rank, name=name, kind="image", file=where, width=width,
                                           height=height))  # fmt: skip
