"""What a terminal shows of text in which a later part overwrites an earlier one, as progress bars do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_UP = "\x1b[A"
_MOVES = re.compile(r"(\r|\n|\x1b\[A)")
#: a bar of tqdm: ``epoch:  40%|████      | 12/30 [00:01<00:02,  8.96it/s]``
_BAR = re.compile(r"(?P<title>.*?)\s*\d+%\|[^|]*\|\s*(?P<done>\d+(?:\.\d+)?)\S*/(?P<total>\S+) \[[^\]]*\].*")


def on_screen(text: str) -> str:
    """Removes what a carriage return or a cursor that moves up overwrites, so that a progress bar becomes one line."""
    if _UP in text:
        return _drawn(text)
    if "\r" not in text:
        return text
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def _drawn(text: str) -> str:
    rows, row, overwrites = [""], 0, False
    for part in _MOVES.split(text):
        if part == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif part == _UP:
            row = max(0, row - 1)
        elif part not in ("", "\r"):
            rows[row] = part if overwrites else rows[row] + part
        if part:
            overwrites = part in ("\r", "\n", _UP)
    return "\n".join(line.rstrip() for line in rows)


@dataclass(frozen=True)
class _Bar:
    title: str
    total: str
    done: float
    line: str


def _bar(line: str) -> _Bar | None:
    found = _BAR.fullmatch(line)
    return None if found is None else _Bar(found["title"], found["total"], float(found["done"]), line)


def without_progress(text: str) -> str:
    """A key that is equal for texts that differ in the progress of their bars alone."""
    if "\r" not in text:
        return text
    bars = ((line, _bar(line)) for line in on_screen(text).split("\n"))
    return "\n".join(line if bar is None else f"{bar.title}\r{bar.total}" for line, bar in bars)


def slowest_bars(texts: Mapping[int, str]) -> str:
    """Of texts by rank that are equal by ``without_progress``, one: each bar is that of the rank that is last, which is
    named unless all are equally far."""
    rows = {rank: on_screen(text).split("\n") for rank, text in texts.items()}
    return "\n".join(_slowest({rank: lines[place] for rank, lines in rows.items()}) for place in range(_length(rows)))


def _length(rows: Mapping[int, list[str]]) -> int:
    return len(next(iter(rows.values())))


def _slowest(lines: Mapping[int, str]) -> str:
    bars = {rank: bar for rank, line in lines.items() if (bar := _bar(line)) is not None}
    if not bars:
        return next(iter(lines.values()))
    last = min(bars, key=lambda rank: bars[rank].done)
    ahead = max(bar.done for bar in bars.values())
    named = f"  rank {last} is last; up to {ahead:g}" if ahead > bars[last].done else ""
    return bars[last].line.rstrip() + named
