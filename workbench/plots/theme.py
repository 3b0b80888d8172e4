"""One look for all figures: colours that people who see colours differently can tell apart, light and dark.

A rank has the same colour in every figure, tile and picture. Figures are drawn transparent; ``apply`` colours their
text, axes and grid for a page, and the live panel does the same in the browser with the same ``COLOURS``.
"""

from __future__ import annotations

from typing import Any

#: Paul Tol's "vibrant" scheme and two of his "muted" one: distinct for the common colour vision deficiencies, and
#: visible on white and on near-black
RANK_COLOURS = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#33bbee", "#aa4499", "#999933", "#cc3311")

#: above this many ranks a figure per rank is unreadable: figures then show the lowest, median and highest rank
MOST_LINES = len(RANK_COLOURS)

LOSS = "#0077bb"
VALIDATION = "#ee7733"
THROUGHPUT = "#009988"
SPREAD = "#0077bb"
BAD = "#ee3377"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif"

COLOURS = {
    "light": {"text": "#1f2328", "muted": "#59636e", "line": "#c8ced6", "grid": "#e7eaee", "empty": "#eceff2"},
    "dark": {"text": "#e6e9ee", "muted": "#a3acb8", "line": "#4a525d", "grid": "#31373f", "empty": "#2c3138"},
}


def rank_colour(rank: int) -> str:
    """Colour of a rank; they repeat after ``MOST_LINES``."""
    return RANK_COLOURS[rank % len(RANK_COLOURS)]


def new_figure(title: str, *, x_label: str, y_label: str, height: int = 250, **options: Any) -> Any:
    """An empty figure in the common look: transparent, as wide as its place, with pan, zoom, reset and save."""
    from bokeh.plotting import figure

    drawn: Any = figure(
        title=title,
        height=height,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,xwheel_zoom,reset,save",
        active_drag="box_zoom",
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
    drawn.min_border_right = 12
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
    drawn.xgrid.grid_line_color = None
    return apply(drawn, "light")


def add_legend(drawn: Any, items: list[tuple[str, list[Any]]]) -> None:
    """A one-line legend above the plot; a click on an entry hides or shows it."""
    from bokeh.models.annotations import Legend, LegendItem

    legend: Any = Legend(items=[LegendItem(label=label, renderers=renderers) for label, renderers in items])
    legend.orientation = "horizontal"
    legend.location = "left"
    legend.click_policy = "hide"
    legend.background_fill_color = legend.border_line_color = None
    legend.label_text_font = FONT
    legend.label_text_font_size = "11px"
    legend.padding = legend.margin = 0
    legend.spacing = 10
    legend.glyph_width = 14
    legend.label_standoff = 4
    drawn.add_layout(legend, "above")
    apply(drawn, "light")


def apply(drawn: Any, mode: str) -> Any:
    """Colour a figure's text, axes and grid for a light or a dark page."""
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
