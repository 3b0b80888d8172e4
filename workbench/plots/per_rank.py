"""Drawing a quantity per rank over time: what utilisation and memory share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.plots import theme

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure


def draw(source: ColumnDataSource, title: str, *, prefix: str, y_label: str, number: str) -> Figure:
    """One line per column ``<prefix>_<rank>`` of ``source``, or the band of lowest to highest rank with its median.

    ``number``: Bokeh's format of a value, with its unit.
    """
    from bokeh.models import AdaptiveTicker, DataRange1d, HoverTool, NumeralTickFormatter

    y_range = DataRange1d(start=0, range_padding=0.1)
    drawn = theme.new_figure(title, x_label="elapsed (h:mm:ss)", y_label=y_label, y_range=y_range)
    drawn.xaxis.formatter = NumeralTickFormatter(format="00:00:00")
    drawn.xaxis.ticker = AdaptiveTicker(base=60, mantissas=[1, 2, 5, 10, 15, 30], min_interval=1, num_minor_ticks=0)
    names = [name.removeprefix(f"{prefix}_") for name in source.data if name != "time"]
    lines: list[tuple[str, Any]] = []
    if "median" in names:
        low, high = f"{prefix}_lowest", f"{prefix}_highest"
        band = drawn.varea("time", low, high, source=source, color=theme.SPREAD, alpha=0.25)
        median = drawn.line("time", f"{prefix}_median", source=source, color=theme.SPREAD, line_width=2)
        lines = [("lowest to highest rank", band), ("median", median)]
        tips = [
            ("elapsed", "@time{00:00:00}"),
            ("lowest", f"@{low}{number}"),
            ("median", f"@{prefix}_median{number}"),
            ("highest", f"@{high}{number}"),
        ]
        drawn.add_tools(HoverTool(renderers=[median], tooltips=tips, mode="vline"))
    else:
        for rank in sorted(int(name) for name in names):
            line = drawn.line(
                "time", f"{prefix}_{rank}", source=source, color=theme.rank_colour(rank), line_width=1.6, alpha=0.9
            )
            lines.append((f"rank {rank}", line))
            tips = [("rank", str(rank)), ("elapsed", "@time{00:00:00}"), (y_label, f"@{prefix}_{rank}{number}")]
            drawn.add_tools(HoverTool(renderers=[line], tooltips=tips, visible=rank == 0))
    theme.add_legend(drawn, [(label, [line]) for label, line in lines])
    return drawn
