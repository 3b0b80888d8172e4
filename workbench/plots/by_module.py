"""Heat maps over modules and steps: what the figures of the tab "inside" share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import cells, heat, theme
from workbench.plots.base import Cursor
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure

#: pixels of a figure above and below its rows, and from one labelled row to the next
_AROUND_PX, _LABEL_PX = 90, 20
#: makes one row per step and layer of the rows of a table
Combine = Callable[[Columns, Store], "pd.DataFrame"]


def module_columns(
    store: Store, cursor: Cursor | None, *, table: str, combine: Combine, colour: str, names: Mapping[str, str]
) -> tuple[Columns, Cursor]:
    """Cells of each module's values (``cells.hold``): step, until, measured, layer, label (the same), row (position in
    the model, from 0), colour (the column ``colour`` of ``combine``, NaN where it is not positive), and the columns
    ``names`` (name of the column here -> that of ``combine``)."""
    read, places, before = cursor or (None, {}, None)
    raw, read = rows.whole_steps(store, table, read)
    found = combine(raw, store)
    places = _places(raw, found, places, store)
    layer = found["layer"].to_numpy(dtype=object)
    value = found[colour].to_numpy(dtype=float)
    measured: Columns = {
        "step": found["step"].to_numpy(dtype=float),
        "layer": layer,
        "label": layer,
        "row": np.array([places[name] for name in layer], dtype=float),
        "colour": np.where(value > 0, value, math.nan),
        **{name: found[known].to_numpy(dtype=float) for name, known in names.items()},
    }
    out, before = cells.hold(measured, before, store)
    return (cells.thin(out) if cursor is None else out), (read, places, before)


def _places(raw: Columns, found: pd.DataFrame, known: dict[str, int], store: Store) -> dict[str, int]:
    """A row for each module of ``found``, by pipeline stage and then in the order in which a rank logged them."""
    shown = set(found["layer"]) - known.keys()
    new: dict[str, tuple[int, int]] = {}
    for at, (name, rank) in enumerate(zip(raw["layer"].tolist(), raw["rank"].tolist(), strict=True)):
        if name in shown and name not in new:
            new[name] = (store.mesh.coordinates(int(rank)).pp, at)
    ordered = sorted(new, key=new.__getitem__)
    return {**known, **{name: len(known) + place for place, name in enumerate(ordered)}}


def module_figure(
    source: ColumnDataSource, title: str, tips: list[tuple[str, str]], *, height: int, log: bool, **scale: Any
) -> Figure:
    """Draw the heat map with its colour bar."""
    drawn = heat.new_figure(title, x_label="step", y_label="", height=height, marks="step")
    mapper = heat.make_mapper(log=log, **scale)
    heat.draw(
        source,
        drawn,
        mapper,
        [("layer", "@layer"), ("step", "@measured{0}"), *tips],
        **heat.PALER,
        ticks=(height - _AROUND_PX) // _LABEL_PX,
    )
    theme.add_colour_bar(drawn, mapper, log=log)
    return theme.finish(drawn)
