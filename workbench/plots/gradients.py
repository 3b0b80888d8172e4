"""Norm of the reduced gradient per layer over steps, as a heat map with layers in model order and a log colour
scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import cells, heat, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

NAME = "gradients"
TITLE = "Gradient norm per layer (L2, reduced, log scale)"
TAB = "gradients"
AXIS = "step"
EMPTY = (
    "No reduced gradients yet: --grad-every N takes statistics every N steps. Ranks that step by themselves have none."
)
WIDE = True
HEIGHT = 380


def columns(store: Store, cursor: Cursor | None) -> tuple[Columns, Cursor]:
    """Cells of each layer's norms (``cells.hold``): step, until, measured, layer, label (the same), row (position in
    the model, from 0), norm, colour (the norm, NaN where it is not positive), bad (count of non-finite elements), mark
    (1 where there are any); max_abs, mean, zeros (fraction): the last known ones, of the step ``full``."""
    steps, places, before = cursor or (None, {}, None)
    table, full, steps = rows.combined(store, steps)
    for scope in ("local", "reduced"):
        places = assign_layer_rows(full, full["scope"] == scope, places, store)
    measured = cells.carry(_measured(table, places), before, ("max_abs", "mean", "zeros"), since="full")
    out, before = cells.hold(measured, before, store)
    out["mark"] = out["mark"] * out["edge"]
    return (thin(out) if cursor is None else out), (steps, places, before)


def thin(columns: Columns) -> Columns:
    """Merge cells into fewer, wider ones."""
    return cells.thin(columns)


def _measured(table: Columns, places: dict[str, int]) -> Columns:
    first = (table["scope"] == "reduced") & rows.begins(table["step"], table["scope"], table["layer"])
    table = {name: values[first] for name, values in table.items()}
    norm, layer, bad = table["norm"], table["layer"], table["nonfinite_count"]
    row = np.array([places[name] for name in layer], dtype=float)
    return {
        "step": table["step"].astype(float),
        "layer": layer,
        "label": layer,
        "row": row,
        "norm": norm,
        "colour": np.where(norm > 0, norm, math.nan),
        "max_abs": table["max_abs"],
        "mean": table["mean"],
        "zeros": table["zero_fraction"],
        "bad": bad,
        "mark": ((bad > 0) | ~np.isfinite(norm)).astype(float),
    }


def assign_layer_rows(raw: Columns, own: np.ndarray, known: dict[str, int], store: Store) -> dict[str, int]:
    """Assign a row to each layer in the rows of ``raw`` selected by ``own``, and return ``known`` with the new layers.

    Layers are ordered by pipeline stage, then by the order in which a rank logs them; new layers follow the known ones.
    Call it with local gradients first: a rank logs these for all its layers, while each reduced gradient is logged by
    one rank only.
    """
    index = np.flatnonzero(own)
    if not index.size:
        return known
    first = dict(zip(raw["layer"][index[::-1]].tolist(), index[::-1].tolist(), strict=True))
    new = [
        (store.mesh.coordinates(int(raw["rank"][at])).pp, at, name) for name, at in first.items() if name not in known
    ]
    return {**known, **{name: len(known) + place for place, (_, _, name) in enumerate(sorted(new))}}


def figure(source: ColumnDataSource) -> Figure:
    """Draw the heat map with its colour bar; crosses mark non-finite elements."""
    drawn = heat.new_figure(TITLE, x_label="step", y_label="", height=HEIGHT, marks="step")
    mapper = heat.make_mapper(log=True)
    tips = [
        ("layer", "@layer"),
        ("step", "@measured{0}"),
        ("norm", "@norm{number}"),
        ("non-finite", "@bad{0}"),
        ("max |g|", "@max_abs{number} (step @full{0})"),
        ("mean", "@mean{number}"),
        ("zeros", "@zeros{0.0 %}"),
    ]
    heat.draw(source, drawn, mapper, tips, **heat.PALER)
    drawn.scatter("step", "row", source=source, marker="x", size=9, line_width=2, color=theme.BAD, alpha="mark")
    theme.add_colour_bar(drawn, mapper, log=True)
    return theme.finish(drawn)
