"""Images and texts that the training script logged: rows of the table ``media``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.columns import Columns

#: fewer images of a name than this are kept on a rank: of so many, every second file goes
MOST_KEPT = 64


@dataclass(frozen=True, kw_only=True)
class Logged:
    """An image (``file``: its path; ``width``, ``height`` in pixels) or a text that was logged."""

    step: int
    rank: int
    name: str
    kind: str
    text: str = ""
    file: Path | None = None
    width: int = 0
    height: int = 0


def media(rows: Columns, run: Path) -> list[Logged]:
    """Rows of the table ``media`` in order of steps, without images whose files are not (any more) in ``run``."""
    found: dict[tuple[Any, ...], Logged] = {}
    for index in range(rows["step"].size):
        step, rank, name, kind, text, file, width, height = (rows[column][index] for column in _MEDIA_COLUMNS)
        path = image_file(run, str(file)) if kind == "image" else None
        if kind == "text" or path is not None:
            place = (int(step), int(rank), str(name), str(kind), text if kind == "text" else "")
            found[place] = Logged(
                step=int(step),
                rank=int(rank),
                name=str(name),
                kind=str(kind),
                text=str(text),
                file=path,
                width=int(width),
                height=int(height),
            )
    return sorted(found.values(), key=lambda one: one.step)


_MEDIA_COLUMNS = ("step", "rank", "name", "kind", "text", "file", "width", "height")


def image_file(run: Path, file: str) -> Path | None:
    """The path of a logged image; None where it is gone, or no image of this run: a log may be anybody's."""
    path = run / file
    inside = path.suffix == ".png" and path.resolve().is_relative_to(run.resolve())
    return path if inside and path.is_file() else None
