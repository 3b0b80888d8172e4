"""Logged images and texts in a report: of each name a bounded number and bounded bytes, the newest first."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from workbench.report.run_data import RunData
from workbench.telemetry.logged.gallery import Gallery, Item, Name

#: names, and images or texts of a name
_MOST_NAMES = 30
_MOST_ITEMS = 8
#: bytes of images of a name, and of a run
_MOST_BYTES_OF_NAME = 2**21
_MOST_BYTES = 2**23
_LONGEST_TEXT = 4000


@dataclass(kw_only=True)
class LoggedItem:
    """An image (``source``: a data URI) or a text of ``rank`` at ``step``. ``problem``: why there is none, or ""."""

    step: int
    rank: int
    text: str
    source: str
    width: int
    height: int
    problem: str


@dataclass(kw_only=True)
class LoggedName:
    """What is shown of a name. ``left_out``: how many more were logged. ``has_ranks``: several ranks logged it."""

    kind: str
    name: str
    items: list[LoggedItem]
    left_out: int
    has_ranks: bool


def read_logged(run: RunData) -> tuple[list[LoggedName], int]:
    """The logged images and texts of a run, and how many names are left out."""
    gallery = Gallery(run.path, has_rollbacks=bool(run.store.rollbacks.known))
    gallery.take(run.store.table("media"))
    names = gallery.names()
    left = _MOST_BYTES
    found = []
    for name in names[:_MOST_NAMES]:
        shown, used = _read_name(gallery, name, left)
        left -= used
        found.append(shown)
    return found, len(names[_MOST_NAMES:]) + len(gallery.left_out)


def _read_name(gallery: Gallery, name: Name, left: int) -> tuple[LoggedName, int]:
    """What is shown of a name, and the bytes of its images."""
    places = _choose(name)
    used, items = 0, []
    for step, rank in places:
        item = gallery.item(name.kind, name.name, rank, step)
        if used + len(item.png) <= min(left, _MOST_BYTES_OF_NAME):
            used += len(item.png)
            items.append(_shown(item))
    items.sort(key=lambda one: (one.step, one.rank))
    total = sum(map(len, name.steps.values()))
    shown = LoggedName(
        kind=name.kind,
        name=name.name,
        items=items,
        left_out=total - len(items),
        has_ranks=len(name.steps) > 1,
    )
    return shown, used


def _choose(name: Name) -> list[tuple[int, int]]:
    """(step, rank) of what is shown, the most important first: the newest of all ranks, then the first step, then
    those between at even distances."""
    ranks = sorted(name.steps)[:_MOST_ITEMS]
    steps = sorted({step for rank in ranks for step in name.steps[rank]})
    count = min(len(steps), max(1, _MOST_ITEMS // len(ranks)))
    chosen = {round(place * (len(steps) - 1) / max(1, count - 1)) for place in range(count)} if count > 1 else set()
    order = [len(steps) - 1, *sorted(chosen - {len(steps) - 1})]
    return [(steps[place], rank) for place in order for rank in ranks if steps[place] in name.steps[rank]]


def _shown(item: Item) -> LoggedItem:
    text = item.text
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]} ... ({len(text):,} characters)"
    return LoggedItem(
        step=item.step,
        rank=item.rank,
        text=text,
        source=f"data:image/png;base64,{base64.b64encode(item.png).decode()}" if item.png else "",
        width=item.width,
        height=item.height,
        problem=item.problem,
    )
