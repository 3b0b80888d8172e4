"""Draws a quantity per rank over time or steps; shared by the figures ``utilisation``, ``memory`` and ``cosine``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.plots import theme
from workbench.telemetry.running import CONFIDENCE

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure as Figure


def draw(
    source: ColumnDataSource, title: str, *, prefix: str, y_label: str, number: str, x: str = "time", start: Any = 0
) -> Figure:
    """Draw one line per column ``<prefix>_<rank>`` of ``source``, or the band of all ranks with its median. Where there
    are columns ``average_<rank>``, ``low_<rank>`` and ``high_<rank>``, the line is the average, with a band, and the
    values are dots.

    ``number``: Bokeh's format of a value, with its unit. ``x``: "time" or "step". ``start``: lower end of the y axis,
    None: automatic.
    """
    from bokeh.models import DataRange1d

    y_range = DataRange1d(range_padding=0.1)
    if start is not None:
        y_range.start = start
    x_label = "step" if x == "step" else theme.ELAPSED
    drawn = theme.new_figure(title, x_label=x_label, y_label=y_label, y_range=y_range, marks=x)
    where = ("step", "@step{0}")
    if x == "time":
        where = ("elapsed", "@time{00:00:00}")
        theme.format_elapsed_axis(drawn)
    names = [name.removeprefix(f"{prefix}_") for name in source.data if name.startswith(f"{prefix}_")]
    entries = (_band if "median" in names else _each)(
        drawn, source, names, prefix=prefix, x=x, number=number, where=where
    )
    if len(entries) <= theme.MOST_ENTRIES:
        theme.add_legend(drawn, entries)
    return theme.finish(drawn)


def _band(
    drawn: Any, source: Any, names: list[str], *, prefix: str, x: str, number: str, where: tuple[str, str]
) -> list[tuple[str, list[Any]]]:
    from bokeh.models import HoverTool

    low, high = f"{prefix}_lowest", f"{prefix}_highest"
    band = drawn.varea(x, low, high, source=source, color=theme.SPREAD, alpha=0.25)
    median = drawn.line(x, f"{prefix}_median", source=source, color=theme.SPREAD, line_width=2)
    tips = [
        where,
        ("lowest", f"@{low}{number}"),
        ("median", f"@{prefix}_median{number}"),
        ("highest", f"@{high}{number}"),
    ]
    middle = [median]
    if x == "step":
        middle.append(drawn.scatter(x, f"{prefix}_median", source=source, color=theme.SPREAD, size=4))
    entries = [("lowest to highest rank", [band]), ("median", middle)]
    if "chosen" in names:
        chosen = drawn.line(x, f"{prefix}_chosen", source=source, color=theme.CHOSEN, line_width=2)
        entries.append(("selected rank", [chosen]))
        tips.append(("selected", f"@{prefix}_chosen{number}"))
    drawn.add_tools(HoverTool(renderers=[median], tooltips=tips, mode="vline"))
    return entries


def _each(
    drawn: Any, source: Any, names: list[str], *, prefix: str, x: str, number: str, where: tuple[str, str]
) -> list[tuple[str, list[Any]]]:
    from bokeh.models import HoverTool

    entries: list[tuple[str, list[Any]]] = []
    for rank in sorted(int(name) for name in names):
        value, is_averaged = f"{prefix}_{rank}", f"average_{rank}" in source.data
        line = drawn.line(
            x,
            f"average_{rank}" if is_averaged else value,
            source=source,
            color=theme.rank_colour(rank),
            line_dash=theme.rank_dash(rank),
            line_width=1.6,
            alpha=0.9,
            name=f"rank {rank}",
        )
        shown = [line]
        tips = [("rank", str(rank)), where, ("value", f"@{value}{number}")]
        look = {"source": source, "color": theme.rank_colour(rank)}
        if is_averaged:
            shown.append(drawn.varea(x, f"low_{rank}", f"high_{rank}", alpha=0.12, **look))
            ends = f"@low_{rank}{{0.000}} to @high_{rank}{{0.000}}"
            tips += [("average", f"@average_{rank}{{0.000}}"), (f"its {CONFIDENCE:.0%} interval", ends)]
        if x == "step":  # few steps have a value; a single point gives no line
            shown.append(drawn.scatter(x, value, size=4, alpha=0.5 if is_averaged else 1.0, **look))
        entries.append((f"rank {rank}", shown))
        told = [line] if x == "time" else [line, shown[-1]]
        drawn.add_tools(HoverTool(renderers=told, tooltips=tips, visible=rank == 0))
    return entries
