"""The answer of ``%dist_why``, as an object, as text and as HTML: a sentence first, table and stacks below."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.live.rank_row import IDLE
from workbench.core.live.stack_text import Stack, with_callers
from workbench.core.numbers import format_table, seconds
from workbench.diagnosis.causes import Cause
from workbench.errors import format_ranks

#: calls of a stack that the text shows
_SHOWN_FRAMES = 12


@dataclass(frozen=True, kw_only=True)
class RankState:
    """What one rank does. ``state``: of its process, in words; ``phase_s``: seconds that it has been in its phase.

    ``waits_for``: ranks that have not come to the collective that it waits in; ``waited_s``: seconds of waiting.
    """

    rank: int
    pid: int
    state: str
    phase: str
    step: int
    phase_s: float
    does: str
    waits_for: tuple[int, ...] = ()
    waited_s: float = 0.0
    stacks: tuple[Stack, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Why ranks do not go on. ``print`` it, or show it in a notebook.

    ``cause``: a ``Cause``; ``sentence``: the verdict; ``missing``: the ranks that others wait for; ``waiting``: the
    ranks that wait; ``advice``: what to do next, or "".
    """

    cause: Cause
    sentence: str
    missing: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    advice: str = ""
    ranks: tuple[RankState, ...] = ()

    def to_value(self) -> dict[str, Any]:
        """Returns the verdict as the value of an event."""
        return {
            "cause": str(self.cause),
            "sentence": self.sentence,
            "missing": list(self.missing),
            "waiting": list(self.waiting),
            "advice": self.advice,
        }

    _HEADER = ("rank", "pid", "process", "step", "phase", "for", "waits for", "does")

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                str(each.rank),
                str(each.pid or ""),
                each.state,
                str(each.step or ""),
                each.phase,
                seconds(each.phase_s) if each.phase else "",
                format_ranks(each.waits_for) if each.waits_for else "",
                each.does,
            )
            for each in self.ranks
        ]

    @property
    def headline(self) -> str:
        """The sentence and the advice."""
        return f"{self.sentence}. {self.advice[:1].upper()}{self.advice[1:]}" if self.advice else self.sentence

    def __str__(self) -> str:
        parts = [self.headline, "", format_table(self._rows(), self._HEADER)]
        for state in self.ranks:
            if state.stacks and state.phase != IDLE:
                parts += ["", f"rank {state.rank}, the innermost call first:", *_lines(state.stacks[:1], _SHOWN_FRAMES)]
        return "\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = [_row("th", self._HEADER), *(_row("td", row) for row in self._rows())]
        stacks = "".join(
            f"<details><summary>rank {state.rank}: {len(state.stacks)} threads</summary>"
            f"<pre>{html.escape(chr(10).join(_lines(state.stacks, 100)))}</pre></details>"
            for state in self.ranks
            if state.stacks
        )
        return (
            f"<p><b>{html.escape(self.headline)}</b></p>"
            f"<details><summary>each rank</summary><table>{''.join(table)}</table></details>{stacks}"
        )


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _lines(stacks: Sequence[Stack], most: int) -> list[str]:
    found = []
    for stack in stacks:
        found.append("  main thread" if stack.is_main else "  another thread")
        shown = with_callers(stack.frames)[:most]
        found += [f"    {frame}" for frame in shown]
        if len(stack.frames) > len(shown):
            found.append(f"    … {len(stack.frames) - len(shown)} more")
    return found
