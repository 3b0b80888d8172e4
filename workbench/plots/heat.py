"""Heat maps: cells that reach from ``x`` to ``until`` in row ``row``, coloured by ``colour``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.core.columns import Columns
from workbench.plots import theme
from workbench.plots.browser_numbers import hover

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource

#: look of the cells of ``cells.hold``
PALER: dict[str, Any] = {"fill_alpha": "alpha", "line_alpha": "edge"}
#: runs in the browser: the label of a row, from the rows that the source has at the time
_LABEL_OF_ROW = """
const { row, label } = source.data;
const place = row.indexOf(tick);
if (place < 0) return "";
const text = String(label[place]) || "(root)";
const most = window.innerWidth < 500 ? 14 : 34;
return text.length > most ? "…" + text.slice(1 - most) : text;
"""


def make_cells(x: np.ndarray, until: np.ndarray, values: np.ndarray, labels: list[str], name: str = "step") -> Columns:
    """Make cells from a table ``values`` (row, column), column by column; NaN values are left out.

    ``x`` and ``until``: where each column begins and ends. ``labels``: one per row. ``name``: name of the x column.
    """
    place, row = np.nonzero(~np.isnan(values.T))
    label = np.array(labels, dtype=object)[row] if row.size else np.empty(0, dtype=object)
    return {
        name: x[place].astype(float),
        "until": until[place].astype(float),
        "row": row.astype(float),
        "label": label,
        "colour": values[row, place],
    }


def make_mapper(*, log: bool = False, low: float | None = None, high: float | None = None, palette: Any = None) -> Any:
    """Make a colour scale (default: Viridis over the range of the data); NaN cells are grey."""
    from bokeh.models import LinearColorMapper, LogColorMapper

    kind = LogColorMapper if log else LinearColorMapper
    return kind(palette=palette or "Viridis256", low=low, high=high, nan_color=theme.COLOURS["light"]["line"])


def diverging_palette() -> list[str]:
    """Make a diverging palette from blue (lowest) through grey (middle) to orange (highest), 255 colours."""
    ends, middle = ((0x00, 0x77, 0xBB), (0xEE, 0x77, 0x33)), (0xDD, 0xDD, 0xDD)

    def mixed(share: float) -> str:
        end = ends[int(share > 0)]
        return "#" + "".join(f"{round(m + abs(share) * (e - m)):02x}" for m, e in zip(middle, end, strict=True))

    return [mixed(share) for share in np.linspace(-1, 1, 255)]


def draw(
    source: ColumnDataSource,
    drawn: Any,
    mapper: Any,
    tips: list[tuple[str, str]],
    *,
    x: str = "step",
    ticks: int = 18,
    **look: Any,
) -> Any:
    """Draw the cells of ``source`` on the figure ``drawn`` and return the renderer.

    ``tips``: tooltips. ``x``: name of the x column. ``ticks``: approximate number of labelled rows. ``look``: more of
    the glyph, such as ``PALER``.
    """
    from bokeh.models import AdaptiveTicker, CustomJSTickFormatter

    colour = {"field": "colour", "transform": mapper}
    renderer = drawn.hbar(
        y="row",
        height=1,
        left=x,
        right="until",
        source=source,
        fill_color=colour,
        line_color=colour,  # hides the gaps between cells
        line_width=1,
        **look,
    )
    drawn.x_range.range_padding = 0
    drawn.yaxis.formatter = CustomJSTickFormatter(args={"source": source}, code=_LABEL_OF_ROW)
    drawn.yaxis.ticker = AdaptiveTicker(min_interval=1, desired_num_ticks=ticks, num_minor_ticks=0)
    drawn.yaxis.major_label_text_font_size = "10px"
    drawn.yaxis.major_tick_line_alpha = 0
    drawn.ygrid.visible = False
    drawn.add_tools(hover(tips, renderers=[renderer]))
    return renderer


def new_figure(title: str, *, x_label: str, y_label: str, height: int, marks: str) -> Any:
    """Make an empty figure whose rows are numbered from top to bottom."""
    from bokeh.models import DataRange1d

    y_range = DataRange1d(flipped=True, range_padding=0)
    return theme.new_figure(
        title, x_label=x_label, y_label=y_label, height=height, y_range=y_range, marks=marks, marks_above=True
    )
