"""Common look of all figures: light and dark colours that people with colour vision deficiencies can tell apart.

A rank has the same colour in every figure, tile and picture. Figures have a transparent background; ``apply`` sets the
colours of text, axes and grid for a light or dark page. The live panel does the same in the browser with ``COLOURS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.plots.browser_numbers import hover, tick_formatter

#: Paul Tol's "vibrant" scheme and two colours of his "muted" scheme: distinct under the common colour vision
#: deficiencies, and visible on white and on near-black
RANK_COLOURS = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#aa4499", "#8844ee", "#cc3311")

#: beyond the colours a rank is told by its dash as well: enough for ``telemetry.row_views.MOST_LINES`` ranks
DASHES = ("solid", "dashed", "dotted", "dotdash")
#: a legend of more entries than this says less than it hides
MOST_ENTRIES = len(RANK_COLOURS)

LOSS = "#0077bb"
#: values of each step beside their smoothed curve: paler, and visible on white and on near-black
EACH_LOSS, EACH_THROUGHPUT = "#66b2dd", "#5cbfb2"
VALIDATION = "#ee7733"
THROUGHPUT = "#009988"
SPREAD = "#0077bb"
BAD = "#ee3377"
CHOSEN = "#ee7733"
MARK = "#aa4499"
#: text within a figure, readable on white and on near-black
NOTE = "#77838f"

#: time of a rank in which it is in no phase
NO_PHASE = "no phase"
#: the phases of a step in their order, with their colours in all figures; waiting is grey
PHASES = {
    "data": "#8844ee",
    "transfer": "#ddcc77",
    "forward": "#33bbee",
    "backward": "#0077bb",
    "optimizer": "#009988",
    "communication": "#ee7733",
    "overlapped": "#f6bb99",
    "bubble": "#bbbbbb",
    "evaluate": "#aa4499",
    "checkpoint": "#882255",
    "monitor": "#ee3377",
    "paused": "#777777",
    NO_PHASE: "#9aa4b0",
}
#: tag of a formatter that shows a tick n as two to the power of n
POWER_OF_TWO = "power of two"
#: label of an axis of seconds since the first device sample
ELAPSED = "elapsed (h:mm:ss)"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif"

COLOURS = {
    "light": {"text": "#1f2328", "muted": "#59636e", "line": "#c8ced6", "grid": "#e7eaee", "empty": "#eceff2"},
    "dark": {"text": "#e6e9ee", "muted": "#a3acb8", "line": "#4a525d", "grid": "#31373f", "empty": "#2c3138"},
}
#: pixels of a legend, of a character in it, and of what is beside the text of an entry
_LEGEND_PX, _LEGEND_CHARACTER_PX, _LEGEND_GLYPH_PX = 390, 6.2, 28


def rank_colour(rank: int) -> str:
    """Colour of a rank. Colours repeat after eight ranks, with another dash."""
    return RANK_COLOURS[rank % len(RANK_COLOURS)]


def rank_dash(rank: int) -> str:
    """Dash pattern of a rank's lines."""
    return DASHES[rank // len(RANK_COLOURS) % len(DASHES)]


def new_figure(
    title: str,
    *,
    x_label: str,
    y_label: str,
    height: int = 250,
    marks: str = "",
    marks_above: bool = False,
    brush: bool = True,
    **options: Any,
) -> Any:
    """Make an empty figure in the common look: transparent, full width, with brush, pan, zoom, reset and save tools.

    ``marks``: "step" or "time" adds vertical lines at this column of an empty source named "marks" (columns step, time,
    label), which the panel or the report fills with user actions (``event_lines``). ``marks_above``: draw the lines
    over the data, as the cells of a heat map would hide them. ``brush``: dragging selects a range of x only.
    """
    from bokeh.plotting import figure

    box = "xbox_zoom" if brush else "box_zoom"
    drawn: Any = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        tools=f"{box},pan,xwheel_zoom,reset,save",
        active_drag=box,
        active_scroll=None,
        x_axis_label=x_label,
        y_axis_label=y_label,
        output_backend="canvas",
        **options,
    )
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = True
    drawn.toolbar_location = "above"
    drawn.background_fill_color = drawn.border_fill_color = drawn.outline_line_color = None
    drawn.min_border_left, drawn.min_border_right = 72, 12  # aligns the x axes of figures above each other
    drawn.title.text_font = FONT
    drawn.title.text_font_size = "13px"
    drawn.title.text_font_style = "bold"
    for axis in drawn.axis:
        axis.axis_label_text_font = axis.major_label_text_font = FONT
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "11px"
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_standoff = 6
        axis.major_tick_in = axis.minor_tick_in = axis.minor_tick_out = 0
        axis.major_tick_out = 4
        if axis.ticker is not None and type(axis.ticker).__name__ == "LogTicker":
            axis.ticker = _log_ticker()
        if type(axis).__name__ != "CategoricalAxis":
            axis.formatter = tick_formatter("number")
    if x_label == "step":
        drawn.xaxis.ticker.min_interval = 1
    drawn.xgrid.grid_line_color = None
    if marks:
        _add_marks(drawn, marks, above=marks_above)
    return apply(drawn, "light")


#: replaces Bokeh's log ticker, which below two decades uses linear ticks and leaves the lower part of the axis empty
_LOG_TICKS = """
const { start, end } = cb_data;
const decades = Math.log10(end / start);
const found = [];
if (decades < 1) {
  const rough = (end - start) / 5;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((nice) => nice * size >= rough);
  for (let place = Math.ceil(start / step); place * step <= end; place += 1) found.push(place * step);
} else {
  const stride = Math.ceil(decades / 5);
  const parts = decades > 3 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(start)); power <= Math.log10(end); power += 1) {
    if (power % stride === 0) for (const part of parts) found.push(part * 10 ** power);
  }
}
return found.filter((tick) => tick >= start && tick <= end);
"""


def _log_ticker() -> Any:
    from bokeh.models import CustomJSTicker

    return CustomJSTicker(major_code=_LOG_TICKS)


def _add_marks(drawn: Any, x: str, *, above: bool) -> None:
    """Add vertical lines that mark user actions, with a tooltip that says which."""
    from bokeh.models import ColumnDataSource, HoverTool, VSpan

    source = ColumnDataSource({"step": [], "time": [], "label": []}, name="marks")
    if above:  # a bright outline makes the line visible on any colour
        outline = drawn.add_glyph(source, VSpan(x=x, line_color="#ffffff", line_alpha=0.7, line_width=3))
        outline.level = "glyph"
    lines = drawn.add_glyph(source, VSpan(x=x, line_color=MARK, line_alpha=0.7, line_width=1.5, line_dash="dashed"))
    lines.level = "glyph" if above else "underlay"  # level "overlay" would extend beyond the frame
    drawn.add_tools(HoverTool(renderers=[lines], tooltips="@label", visible=False))


def format_elapsed_axis(drawn: Any) -> None:
    """Format the x axis, in seconds, as h:mm:ss, with few ticks so that they fit on a phone."""
    from bokeh.models import AdaptiveTicker, NumeralTickFormatter

    mantissas = [1, 2, 5, 10, 15, 30]
    drawn.xaxis.formatter = NumeralTickFormatter(format="00:00:00")
    drawn.xaxis.ticker = AdaptiveTicker(
        base=60, mantissas=mantissas, min_interval=1, desired_num_ticks=4, num_minor_ticks=0
    )


def add_spikes(drawn: Any, source: Any) -> Any:
    """Draw spikes as triangles at the columns ``spike_at`` and ``spike`` of ``source``; returns the renderer."""
    look = {"marker": "triangle", "size": 9, "color": BAD, "line_color": None}
    spikes = drawn.scatter("spike_at", "spike", source=source, **look)
    drawn.add_tools(hover([("step", "@spike_at{0}"), ("spike", "@spike{number}")], renderers=[spikes]))
    return spikes


def label_rank_rows(drawn: Any, source: Any, *, ticks: int) -> None:
    """Label the rows of a figure with their ranks, from the columns ``row`` and ``rank`` of ``source``."""
    from bokeh.models import AdaptiveTicker, CustomJSTickFormatter

    drawn.yaxis.ticker = AdaptiveTicker(min_interval=1, desired_num_ticks=ticks, num_minor_ticks=0)
    drawn.yaxis.formatter = CustomJSTickFormatter(
        args={"source": source},
        code="const i = source.data.row.indexOf(tick); return i < 0 ? '' : String(source.data.rank[i]);",
    )
    drawn.ygrid.visible = False


def finish(drawn: Any) -> Any:
    """Complete a figure: its ranges follow the data and ignore the marks, marks are drawn after the data of their
    level, and colours are those of a light page."""
    shown = [renderer for renderer in drawn.renderers if renderer.data_source.name != "marks"]
    drawn.renderers = [*shown, *(renderer for renderer in drawn.renderers if renderer not in shown)]
    for axis_range in (drawn.x_range, drawn.y_range):
        if hasattr(axis_range, "renderers"):
            axis_range.renderers = shown
    return apply(drawn, "light")


def add_colour_bar(drawn: Any, mapper: Any, *, log: bool, title: str = "", format: str = "") -> Any:
    """Add the colour scale of a heat map on its right side."""
    from bokeh.models import BasicTicker, LogTicker, NumeralTickFormatter
    from bokeh.models.annotations import ColorBar

    bar: Any = ColorBar(color_mapper=mapper, ticker=LogTicker() if log else BasicTicker(desired_num_ticks=5))
    bar.width, bar.padding, bar.label_standoff = 12, 6, 6
    bar.background_fill_color = None
    bar.major_label_text_font = bar.title_text_font = FONT
    bar.major_label_text_font_size = bar.title_text_font_size = "11px"
    bar.title_text_font_style = "normal"
    if title:
        bar.title = title
    if format:
        bar.formatter = NumeralTickFormatter(format=format)
    elif log:
        bar.formatter = tick_formatter("number")
    drawn.add_layout(bar, "right")
    return bar


def legend_lines(labels: Sequence[str]) -> int:
    """Lines of a legend with these entries, so that none is cut off in half of a page of 900 px."""
    widths = [_LEGEND_GLYPH_PX + _LEGEND_CHARACTER_PX * len(label) for label in labels]
    if sum(widths) <= _LEGEND_PX or not widths:
        return 1
    return -(-len(widths) // max(1, int(_LEGEND_PX // max(widths))))


def add_legend(drawn: Any, items: list[tuple[str, list[Any]]]) -> None:
    """Add a legend above the plot, of as many lines as it needs; a click on an entry hides or shows its renderers."""
    from bokeh.models.annotations import Legend, LegendItem

    legend: Any = Legend(items=[LegendItem(label=label, renderers=renderers) for label, renderers in items])
    legend.orientation = "horizontal"
    legend.location = "left"
    legend.click_policy = "hide"
    legend.background_fill_color = legend.border_line_color = None
    legend.label_text_font = FONT
    legend.label_text_font_size = "11px"
    legend.padding = legend.margin = 0
    legend.label_width = 0
    legend.spacing = 10
    lines = legend_lines([label for label, _ in items])
    if lines > 1:
        legend.ncols = -(-len(items) // lines)
    if lines > 2:  # closer together
        legend.spacing, legend.label_height, legend.glyph_height = 4, 14, 14
    legend.glyph_width = 14
    legend.label_standoff = 4
    drawn.add_layout(legend, "above")
    apply(drawn, "light")


def apply(drawn: Any, mode: str) -> Any:
    """Set the colours of a figure's text, axes and grid; ``mode``: "light" or "dark"."""
    from bokeh.models.annotations import ColorBar, Legend

    colours = COLOURS[mode]
    drawn.title.text_color = colours["text"]
    for axis in drawn.axis:
        axis.axis_label_text_color = axis.major_label_text_color = colours["muted"]
        axis.axis_line_color = axis.major_tick_line_color = colours["line"]
    drawn.ygrid.grid_line_color = colours["grid"]
    for part in drawn.above + drawn.right:
        if isinstance(part, Legend):
            part.label_text_color = colours["text"]
        if isinstance(part, ColorBar):
            part.major_label_text_color = colours["muted"]
    return drawn
