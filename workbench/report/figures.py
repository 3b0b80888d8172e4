"""Draws the plots of ``workbench.plots`` for a report, each on all rows of a run.

Each plot becomes a static picture (SVG), which needs no script, and an interactive Bokeh figure. A ``FigureBundle``
collects the interactive figures of one HTML file. The figures and BokehJS are stored in the file compressed, and
``report.js`` decompresses them in the browser.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import ColumnDataSource, DataRange1d

from workbench.core.columns import Columns
from workbench.plots import event_lines, theme
from workbench.plots.base import Plot
from workbench.plots.still.picture import Still, still
from workbench.telemetry.store import Store

#: tabs of the plots that declare no ``TAB``, by name
_TABS = {"loss": "overview", "throughput": "overview", "utilisation": "ranks", "memory": "ranks"}
#: columns whose magnitudes lie between these limits are stored in single precision
_MAX_SINGLE, _MIN_SINGLE = 2.0**24, 1e-30
_GZIP_LEVEL = 6


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """One figure of a report, with its static picture.

    ``element_id``: id of the HTML element in which the interactive figure is drawn. ``picture`` is None if there is no
    data (``empty_text`` may say why) or the figure could not be drawn. ``problem``: a sentence that says why the
    figure is missing or not interactive; "" if all is well. ``height``: in pixels. ``colour_key``: (name, colour) of
    the phases that the figure shows.
    """

    name: str
    title: str
    element_id: str
    tab: str
    picture: Still | None = None
    interactive: bool = False
    problem: str = ""
    empty_text: str = ""
    height: int = 0
    wide: bool = False
    colour_key: tuple[tuple[str, str], ...] = ()


@dataclass(kw_only=True)
class FigureBundle:
    """The interactive figures of one HTML file.

    ``light``: the file gets static pictures only, and the bundle stays empty. ``count``: number of interactive figures.
    """

    light: bool = False
    count: int = 0
    _documents: list[str] = field(default_factory=list)

    def draw_plots(self, store: Store, plots: Iterable[Plot], prefix: str = "") -> list[ReportFigure]:
        """Draw every plot on all rows of the store. A plot that fails becomes a figure with a ``problem``.

        Figures with the same quantity on the x axis share their range, so that they zoom and pan together. ``prefix``:
        put before the ids of the figures' elements.
        """
        marks = event_lines.make_marks(store)
        pairs = [self._draw_plot(store, plot, prefix, marks) for plot in plots]
        drawn = [(described, figure) for described, figure in pairs if figure is not None]
        if self.light or not drawn:
            return [described for described, _ in pairs]
        _link_x_ranges([(find_x_quantity(figure), figure) for _, figure in drawn])
        failed = self._serialize_or_report(drawn)
        return [failed.get(described.element_id, described) for described, _ in pairs]

    def add_figure(
        self,
        title: str,
        element_id: str,
        figure: Any,
        *,
        tab: str = "overview",
        columns: Columns | None = None,
        wide: bool = True,
    ) -> ReportFigure:
        """Add a Bokeh figure that is not drawn by a plot module. ``wide``: it takes the full width.

        ``columns``: the data of the figure, for its colour key.
        """
        texts = {"name": title, "title": title, "element_id": element_id, "tab": tab}
        described = _describe_figure(figure, columns or {}, **texts, wide=wide, interactive=not self.light)
        if not self.light:
            self._serialize_or_report([(described, figure)])
        return described

    def to_base64(self) -> str:
        """The figures as JSON for ``report.js``, compressed with gzip and encoded as base64."""
        return compress_text(f"[{','.join(self._documents)}]")

    def _draw_plot(
        self, store: Store, plot: Plot, prefix: str, marks: list[dict[str, Any]]
    ) -> tuple[ReportFigure, Any]:
        """The figure of a plot and its Bokeh figure; the latter is None if there is no data or the plot fails."""
        tab = str(getattr(plot, "TAB", _TABS.get(plot.NAME, plot.NAME))).lower()
        texts: dict[str, Any] = {
            "name": plot.NAME,
            "title": plot.TITLE,
            "element_id": f"{prefix}figure-{plot.NAME}",
            "tab": tab,
        }
        try:
            columns = _compute_columns(store, plot)
            if not any(len(values) for values in columns.values()):
                return ReportFigure(**texts, empty_text=str(getattr(plot, "EMPTY", ""))), None
            texts["title"] = _title(plot, columns)
            data = {name: to_bokeh_column(values) for name, values in columns.items()}
            figure = plot.figure(ColumnDataSource(data))
            event_lines.add_marks(figure, marks)
            if hasattr(plot, "height"):
                figure.height = plot.height(columns)
            wide = bool(getattr(plot, "WIDE", False))
            return _describe_figure(figure, columns, **texts, wide=wide, interactive=not self.light), figure
        except Exception as error:  # plots are also the user's own: one that fails must not end the report
            return ReportFigure(
                **texts, problem=f"This figure could not be drawn: {type(error).__name__}: {error}"
            ), None

    def _serialize_or_report(self, figures: Sequence[tuple[ReportFigure, Any]]) -> dict[str, ReportFigure]:
        """Serialize figures as one Bokeh document. Returns those that fail, as static figures, by element id."""
        try:
            self._serialize(figures)
            return {}
        except Exception as error:  # at least one figure cannot be serialized: find it by trying each one alone
            if len(figures) == 1:
                described = figures[0][0]
                problem = (
                    "This figure is shown as a static picture because the interactive figure could not be stored: "
                    f"{type(error).__name__}: {error}"
                )
                return {described.element_id: replace(described, interactive=False, problem=problem)}
        failed: dict[str, ReportFigure] = {}
        for pair in figures:
            failed.update(self._serialize_or_report([pair]))
        return failed

    def _serialize(self, figures: Sequence[tuple[ReportFigure, Any]]) -> None:
        document = Document()
        with document.models.freeze():  # one walk over all models instead of one per figure
            for _, figure in figures:
                if figure.document is not None:
                    figure.document.remove_root(figure)
                figure.title = None  # the caption of the HTML element shows it
                document.add_root(figure)
        roots = {figure.id: described.element_id for described, figure in figures}
        serialized = {"document": document.to_json(deferred=False), "roots": roots}
        self._documents.append(json.dumps(serialized, separators=(",", ":")))
        self.count += len(roots)


def _title(plot: Plot, columns: Columns) -> str:
    """The title of a figure; one of the selected layer names the layer that is shown, as nothing is selected here."""
    if getattr(plot, "CHOICE", None) != "layer":
        return plot.TITLE
    return plot.TITLE.replace("the selected layer", f"layer {columns['layer'][0]}")


def _describe_figure(
    figure: Any, columns: Columns, *, name: str, title: str, element_id: str, tab: str, wide: bool, interactive: bool
) -> ReportFigure:
    return ReportFigure(
        name=name,
        title=title,
        element_id=element_id,
        tab=tab,
        picture=still(figure, title=title, wide=wide),
        interactive=interactive,
        height=figure.height or 300,
        wide=wide,
        colour_key=_colour_key(columns),
    )


def _colour_key(columns: Columns) -> tuple[tuple[str, str], ...]:
    """The phases in the columns with their colours, in the order of a step; empty if the columns contain no phases."""
    if not {"phase", "colour"} <= set(columns):
        return ()
    colours = dict(zip(columns["phase"], columns["colour"], strict=True))
    order = list(theme.PHASES)
    return tuple(sorted(colours.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _compute_columns(store: Store, plot: Plot) -> Columns:
    if getattr(plot, "CHOICE", None):
        return plot.columns(store, None, None)[0]  # type: ignore[call-arg]
    return plot.columns(store, None)[0]


def find_x_quantity(figure: Any) -> str:
    """The quantity on a figure's x axis, from the label of the axis: ``step``, ``elapsed``, or "" for any other."""
    label = str(figure.xaxis[0].axis_label or "")
    return next((quantity for quantity in ("step", "elapsed") if label.split(" ", maxsplit=1)[0] == quantity), "")


def _link_x_ranges(figures: Sequence[tuple[str, Any]]) -> None:
    """Give the figures with the same x quantity one common x range."""
    ranges: dict[str, Any] = {}
    for quantity, figure in figures:
        if not quantity or type(figure.x_range) is not DataRange1d:
            continue
        if quantity in ranges:
            figure.x_range = ranges[quantity]
        else:
            ranges[quantity] = figure.x_range
            figure.x_range.range_padding = 0.02


def to_bokeh_column(values: object) -> object:
    """Convert a column for Bokeh: text to a list, doubles to single precision if the plot looks the same."""
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind == "O":
        return values.tolist()
    if values.dtype == np.float64 and values.size:
        magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
        if not magnitudes.size or (magnitudes.max() < _MAX_SINGLE and magnitudes.min() > _MIN_SINGLE):
            return values.astype(np.float32)
    return values


def compress_text(text: str) -> str:
    """Text compressed with gzip and encoded as base64, as ``unpack`` in ``report.js`` reads it."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=_GZIP_LEVEL, mtime=0)).decode()


@cache
def load_bokehjs(*components: str) -> str:
    """BokehJS of the installed Bokeh, compressed: the core and ``components`` ("widgets", "tables", "mathjax")."""
    import bokeh

    folder = Path(bokeh.__file__).parent / "server" / "static" / "js"
    names = ["bokeh", *(f"bokeh-{component}" for component in components)]
    return compress_text("\n".join((folder / f"{name}.min.js").read_text(encoding="utf-8") for name in names))


def to_script_json(data: object) -> str:
    """JSON that is safe inside an HTML script element: no character in it can end the element."""
    text = json.dumps(data, separators=(",", ":"))
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
