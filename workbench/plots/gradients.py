"""Norm of the reduced gradient per layer over steps: a heat map, layers in model order, colours on a log scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.plots import theme
from workbench.plots.base import Cursor
from workbench.plots.rows import has_ended
from workbench.telemetry.gradients import combine
from workbench.telemetry.store import Columns, Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "gradients"
TITLE = "Gradient norm per layer (L2, reduced over ranks, log scale)"
WIDE = True
HEIGHT = 380
CELLS = 30_000

#: in the browser: the layer of a row, from whatever rows the source has by now
_LAYER_OF_ROW = """
const { row, layer } = source.data;
const place = row.indexOf(tick);
if (place < 0) return "";
const text = String(layer[place]) || "(root)";
return text.length > 34 ? "…" + text.slice(-33) : text;
"""


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """A cell per step and layer: step, until (where the next one begins), layer, row (its place in the model, from 0),
    top, bottom, norm, colour (the norm, NaN where a log scale has no place for it), max_abs, mean, zeros (fraction),
    bad (non-finite elements), mark (1 if there are any)."""
    row, last_step, places = cursor or (0, 0, {})
    full, end = store.since("gradients", row)
    raw = {name: values[full["scope"] == "reduced"] for name, values in full.items()}
    whole = _whole_steps(raw["step"], last_step, store)
    if whole.size:
        places = _places({name: values[full["step"] <= whole[-1]] for name, values in full.items()}, places, store)
    stride = max(1, math.ceil(whole.size * max(1, len(places)) / CELLS)) if cursor is None else 1
    if whole.size:
        last_step = int(whole[-1])
    waiting = np.flatnonzero((full["step"] > last_step) & (full["scope"] == "reduced"))
    shown = whole[::-1][::stride][::-1]
    taken = np.isin(raw["step"], shown)
    out = _cells({name: values[taken] for name, values in raw.items()}, store, places, stride)
    return out, (row + int(waiting[0]) if waiting.size else end, last_step, places)


def _cells(raw: Columns, store: Store, places: dict[str, int], stride: int) -> Columns:
    table = combine(raw, store.mesh).drop_duplicates(["step", "layer"])
    steps = table["step"].to_numpy(float)
    norm = table["norm"].to_numpy(float)
    layer = table["layer"].to_numpy(object)
    row = np.array([places[name] for name in layer], dtype=float)
    bad = table["nonfinite_count"].to_numpy(float)
    every = max(1, store.spec.monitor.grad_every or 20)
    return {
        "step": steps,
        "until": np.where(steps % every == 0, steps + every * stride, np.ceil(steps / every) * every),
        "layer": layer,
        "row": row,
        "top": row - 0.5,
        "bottom": row + 0.5,
        "norm": norm,
        "colour": np.where(norm > 0, norm, math.nan),
        "max_abs": table["max_abs"].to_numpy(float),
        "mean": table["mean"].to_numpy(float),
        "zeros": table["zero_fraction"].to_numpy(float),
        "bad": bad,
        "mark": (bad > 0).astype(float),
    }


def _places(raw: Columns, known: dict[str, int], store: Store) -> dict[str, int]:
    """Row of each layer: pipeline stage, then the order in which a rank logs its layers; newcomers come after.

    Local gradients come first: a rank has those of all its layers, while ranks share out the reduced ones.
    """
    places = dict(known)
    for scope in ("local", "reduced"):
        index = np.flatnonzero(raw["scope"] == scope)
        names, first = np.unique(raw["layer"][index].astype(str), return_index=True)
        stages = [store.mesh.coordinates(int(rank)).pp for rank in raw["rank"][index[first]]]
        for _, _, name in sorted(zip(stages, first, names, strict=True)):
            places.setdefault(str(name), len(places))
    return places


def _whole_steps(steps: np.ndarray, last_step: int, store: Store) -> np.ndarray:
    """Steps after ``last_step`` whose rows are all written: every rank is two steps further, or the run has ended.

    Counting ranks would not do: they share out the reduced gradients, so a small model leaves some with none.
    """
    new = np.unique(steps[steps > last_step])
    if not new.size or has_ended(store):
        return new
    records = store.table("steps")
    furthest = np.zeros(store.mesh.world_size, dtype=int)
    np.maximum.at(furthest, records["rank"], records["step"])
    return new[new + 2 <= furthest.min()]


def figure(source: ColumnDataSource) -> Figure:
    """The heat map with its colour bar."""
    from bokeh.models import (
        AdaptiveTicker,
        CustomJSTickFormatter,
        DataRange1d,
        HoverTool,
        LogColorMapper,
        LogTicker,
    )
    from bokeh.models.annotations import ColorBar

    y_range = DataRange1d(flipped=True, range_padding=0)
    drawn = theme.new_figure(TITLE, x_label="step", y_label="", height=HEIGHT, y_range=y_range)
    drawn.x_range.range_padding = 0
    mapper = LogColorMapper(palette="Viridis256", nan_color=theme.COLOURS["light"]["line"])
    cells = drawn.quad(
        left="step",
        right="until",
        top="top",
        bottom="bottom",
        source=source,
        fill_color={"field": "colour", "transform": mapper},
        line_color=None,
    )
    drawn.scatter("step", "row", source=source, marker="x", size=9, line_width=2, color=theme.BAD, alpha="mark")
    drawn.yaxis.formatter = CustomJSTickFormatter(args={"source": source}, code=_LAYER_OF_ROW)
    drawn.yaxis.ticker = AdaptiveTicker(min_interval=1, desired_num_ticks=26, num_minor_ticks=0)
    drawn.yaxis.major_label_text_font_size = "10px"
    drawn.yaxis.major_tick_line_alpha = 0
    drawn.ygrid.visible = False
    bar = ColorBar(color_mapper=mapper, ticker=LogTicker(), width=12, padding=6, label_standoff=6)
    bar.background_fill_color = None
    bar.major_label_text_font = theme.FONT
    bar.major_label_text_font_size = "11px"
    drawn.add_layout(bar, "right")
    tips = [
        ("layer", "@layer"),
        ("step", "@step{0}"),
        ("norm", "@norm{0.000e+0}"),
        ("max |g|", "@max_abs{0.000e+0}"),
        ("mean", "@mean{0.000e+0}"),
        ("zeros", "@zeros{0.0 %}"),
        ("not finite", "@bad{0}"),
    ]
    drawn.add_tools(HoverTool(renderers=[cells], tooltips=tips))
    return theme.apply(drawn, "light")
