"""The report's figures: the live panel's plot modules, each drawn once on all rows of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource
from bokeh.resources import Resources

from workbench.plots.base import Plot
from workbench.telemetry.store import Store


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One figure, ready to embed. ``item`` is JSON that is safe inside a script element; empty: there is no data."""

    name: str
    title: str
    item: str = ""
    problem: str = ""
    height: int = 0
    wide: bool = False


def script_safe(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def draw(store: Store, plots: Iterable[Plot]) -> list[Drawn]:
    """Every plot on all rows of the store; one that cannot be drawn says why instead of ending the report."""
    return [_draw(store, plot) for plot in plots]


def _draw(store: Store, plot: Plot) -> Drawn:
    try:
        columns, _ = plot.columns(store, None)
        if not any(len(values) for values in columns.values()):
            return Drawn(name=plot.NAME, title=plot.TITLE)
        figure = plot.figure(ColumnDataSource({name: list_or_array(values) for name, values in columns.items()}))
        figure.title = None  # the caption says it
        item = json_item(figure, ID(f"figure-{plot.NAME}"))
        wide = getattr(plot, "WIDE", False)
        return Drawn(name=plot.NAME, title=plot.TITLE, item=script_safe(item), height=figure.height or 300, wide=wide)
    except Exception as error:  # a plot of anybody's, on any data: the reader is told, and has the other figures
        return Drawn(name=plot.NAME, title=plot.TITLE, problem=f"{type(error).__name__}: {error}")


def list_or_array(values: object) -> object:
    """Bokeh takes text as a list, numbers as an array."""
    return values.tolist() if isinstance(values, np.ndarray) and values.dtype.kind == "O" else values


def library() -> str:
    """BokehJS as one script (its core only: no widgets, no tables, no MathJax)."""
    scripts = Resources(mode="inline", components=["bokeh"], minified=True).js_raw
    return "\n".join(scripts).replace("</script", "<\\/script")
