"""The report's figures: the live panel's plot modules, each drawn once on all rows of a run, twice over: as a still
picture that needs no script, and as a Bokeh figure with pan, zoom and hover, linked to its neighbours.

A ``Sheet`` collects the interactive figures of one HTML file. They travel gzipped, as does BokehJS, and are unpacked in
the reader's browser.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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

#: tabs of figures that name none of their own, by figure
_TABS = {"loss": "overview", "throughput": "overview", "utilisation": "ranks", "memory": "ranks"}
#: numbers beyond these keep all their digits; all others are drawn from single precision
_LARGE, _SMALL = 2.0**24, 1e-30
_LEVEL = 6


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One figure of a run. ``place``: id of the element that it is drawn in. ``picture`` None: there is no data, or a
    ``problem`` that says why it could not be drawn. ``empty``: what the figure says about having no data."""

    name: str
    title: str
    place: str
    tab: str
    picture: Still | None = None
    interactive: bool = False
    problem: str = ""
    empty: str = ""
    height: int = 0
    wide: bool = False
    key: tuple[tuple[str, str], ...] = ()  # what its colours stand for, where it has no legend of its own


@dataclass(kw_only=True)
class Sheet:
    """The interactive figures of one file; ``light``: none, still pictures only."""

    light: bool = False
    count: int = 0  # interactive figures
    _documents: list[str] = field(default_factory=list)

    def draw(self, store: Store, plots: Iterable[Plot], prefix: str = "") -> list[Drawn]:
        """Every plot on all rows of the store; one that cannot be drawn says why instead of ending the report.

        Figures whose x is the same quantity share its range: a zoom in one is the zoom of all.
        """
        marks = event_lines.make_marks(store)
        pairs = [self._draw(store, plot, prefix, marks) for plot in plots]
        figures = [(drawn, figure) for drawn, figure in pairs if figure is not None]
        if self.light or not figures:
            return [drawn for drawn, _ in pairs]
        _link([(axis_of(figure), figure) for _, figure in figures])
        bad = self._add(figures)
        return [bad.get(drawn.place, drawn) for drawn, _ in pairs]

    def add(
        self, title: str, place: str, figure: Any, *, tab: str = "overview", columns: Columns | None = None
    ) -> Drawn:
        """A figure that is no plot module's, as wide as the page. ``columns``: what it shows."""
        about = {"name": title, "title": title, "place": place, "tab": tab}
        drawn = _made(figure, columns or {}, **about, wide=True, interactive=not self.light)
        if not self.light:
            self._add([(drawn, figure)])
        return drawn

    def payload(self) -> str:
        """The figures for ``report.js``, gzipped, in base64."""
        return packed(f"[{','.join(self._documents)}]")

    def _draw(self, store: Store, plot: Plot, prefix: str, marks: list[dict[str, Any]]) -> tuple[Drawn, Any]:
        tab = str(getattr(plot, "TAB", _TABS.get(plot.NAME, plot.NAME))).lower()
        place = f"{prefix}figure-{plot.NAME}"
        nothing = Drawn(name=plot.NAME, title=plot.TITLE, place=place, tab=tab)
        try:
            columns = _columns(store, plot)
            if not any(len(values) for values in columns.values()):
                return Drawn(**{**vars(nothing), "empty": str(getattr(plot, "EMPTY", ""))}), None
            data = {name: list_or_array(values) for name, values in columns.items()}
            figure = plot.figure(ColumnDataSource(data))
            event_lines.add_marks(figure, marks)
            if hasattr(plot, "height"):
                figure.height = plot.height(columns)
            wide = bool(getattr(plot, "WIDE", False))
            about = {"name": plot.NAME, "title": plot.TITLE, "place": place, "tab": tab}
            drawn = _made(figure, columns, **about, wide=wide, interactive=not self.light)
            return drawn, figure
        except Exception as error:  # a plot of anybody's, on any data: the reader is told, and has the other figures
            return Drawn(**{**vars(nothing), "problem": f"{type(error).__name__}: {error}"}), None

    def _add(self, figures: Sequence[tuple[Drawn, Any]]) -> dict[str, Drawn]:
        """Take figures in as one document; those that cannot be written down stay still: place -> what it is now."""
        try:
            self._take(figures)
            return {}
        except Exception as error:  # one of them: it is found by trying each alone
            if len(figures) == 1:
                drawn = figures[0][0]
                said = f"It stays still: {type(error).__name__}: {error}"
                return {drawn.place: Drawn(**{**vars(drawn), "interactive": False, "problem": said})}
        bad: dict[str, Drawn] = {}
        for one in figures:
            bad.update(self._add([one]))
        return bad

    def _take(self, figures: Sequence[tuple[Drawn, Any]]) -> None:
        document = Document()
        with document.models.freeze():  # one walk over all models instead of one per figure
            for _, figure in figures:
                if figure.document is not None:
                    figure.document.remove_root(figure)
                figure.title = None  # the caption says it
                document.add_root(figure)
        roots = {figure.id: drawn.place for drawn, figure in figures}
        written = {"document": document.to_json(deferred=False), "roots": roots}
        self._documents.append(json.dumps(written, separators=(",", ":")))
        self.count += len(roots)


def _made(
    figure: Any, columns: Columns, *, name: str, title: str, place: str, tab: str, wide: bool, interactive: bool
) -> Drawn:
    return Drawn(
        name=name,
        title=title,
        place=place,
        tab=tab,
        picture=still(figure, title=title, wide=wide),
        interactive=interactive,
        height=figure.height or 300,
        wide=wide,
        key=_key(columns),
    )


def _key(columns: Columns) -> tuple[tuple[str, str], ...]:
    """Phases and their colours, in the order of a step, of a figure that has columns of them."""
    if not {"phase", "colour"} <= set(columns):
        return ()
    seen = dict(zip(columns["phase"], columns["colour"], strict=True))
    order = list(theme.PHASES)
    return tuple(sorted(seen.items(), key=lambda found: order.index(found[0]) if found[0] in order else len(order)))


def _columns(store: Store, plot: Plot) -> Columns:
    if getattr(plot, "CHOICE", None):
        return plot.columns(store, None, None)[0]  # type: ignore[call-arg]
    return plot.columns(store, None)[0]


def axis_of(figure: Any) -> str:
    """What a figure's x is, from the label of its axis: "step", "elapsed" or ""."""
    label = str(figure.xaxis[0].axis_label or "")
    return next((known for known in ("step", "elapsed") if label.split(" ", maxsplit=1)[0] == known), "")


def _link(figures: Sequence[tuple[str, Any]]) -> None:
    shared: dict[str, Any] = {}
    for axis, figure in figures:
        if not axis or type(figure.x_range) is not DataRange1d:
            continue
        if axis in shared:
            figure.x_range = shared[axis]
        else:
            shared[axis] = figure.x_range
            figure.x_range.range_padding = 0.02


def list_or_array(values: object) -> object:
    """Bokeh takes text as a list, numbers as an array: of single precision where that shows the same."""
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind == "O":
        return values.tolist()
    if values.dtype == np.float64 and values.size:
        size = np.abs(values[np.isfinite(values) & (values != 0)])
        if not size.size or (size.max() < _LARGE and size.min() > _SMALL):
            return values.astype(np.float32)
    return values


def packed(text: str) -> str:
    """Text, gzipped, in base64: what ``unpack`` in ``report.js`` takes."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=_LEVEL, mtime=0)).decode()


@cache
def library(*parts: str) -> str:
    """BokehJS of the installed Bokeh, packed: its core and ``parts`` of it ("widgets", "tables", "mathjax")."""
    import bokeh

    folder = Path(bokeh.__file__).parent / "server" / "static" / "js"
    names = ["bokeh", *(f"bokeh-{part}" for part in parts)]
    return packed("\n".join((folder / f"{name}.min.js").read_text(encoding="utf-8") for name in names))


def script_safe(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"))
    for character in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
