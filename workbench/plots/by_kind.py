"""Sums collectives per step and kind; shared by the figures ``traffic`` and ``bandwidth``."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

#: factor from bytes per second to bus bandwidth for n ranks: bytes that cross the slowest link per byte of payload
#: (nccl-tests, doc/PERFORMANCE.md)
_RING = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
}
#: the kinds in their order, with their colours in both figures
KINDS = {
    "all_reduce": "#0077bb",
    "reduce_scatter": "#ee7733",
    "all_gather": "#009988",
    "all_to_all": "#ee3377",
    "broadcast": "#33bbee",
    "send": "#aa4499",
    "recv": "#999933",
}
OTHER = "other"


def read_by_kind(store: Store, cursor: Any, least_bytes: int = 0) -> tuple[Columns, list[str], np.ndarray, Any]:
    """Rows of ``collectives`` of completed steps since ``cursor``, the kinds seen so far, the index of each row's kind
    among them, and the next cursor. Those that move less than ``least_bytes`` are left out."""
    steps, known = cursor or (None, ())
    raw, steps = rows.whole_steps(store, "collectives", steps)
    raw = {name: values[raw["bytes"] >= least_bytes] for name, values in raw.items()}
    seen = {str(kind) if kind in KINDS else OTHER for kind in np.unique(raw["kind"].astype(str))}
    kinds = [kind for kind in (*KINDS, OTHER) if kind in seen or kind in known]
    place = np.array([kinds.index(kind if kind in KINDS else OTHER) for kind in raw["kind"]], dtype=int)
    return raw, kinds, place, (steps, tuple(kinds))


def bus_factor(kind: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Factor from bytes per second to bus bandwidth for each collective; ``size``: ranks in its group."""
    factor = np.ones(kind.size)
    for name, of_ranks in _RING.items():
        own = kind == name
        factor[own] = of_ranks(np.maximum(size[own], 1))
    return factor


def draw(source: Any, drawn: Any, number: str) -> Any:
    """Draw one line per kind on the figure ``drawn``; ``number``: the format
    of a value (``browser_numbers.hover``), with its unit."""
    entries = []
    for name in source.data:
        if name == "step":
            continue
        colour = KINDS.get(name, theme.COLOURS["light"]["muted"])
        label = name.replace("_", "-")
        dash = "dashed" if name == "recv" else "solid"  # the lines of send and recv often coincide
        line = drawn.line("step", name, source=source, color=colour, line_width=1.8, line_dash=dash)
        entries.append((label, [line]))
        tips = [("collective", label), ("step", "@step{0}"), ("value", f"@{name}{number}")]
        drawn.add_tools(hover(tips, renderers=[line], visible=len(entries) == 1))
    if entries:
        theme.add_legend(drawn, entries)
    return theme.finish(drawn)
