"""The curves of a comparison: Bokeh figures in the common look, and one picture for viewers without scripts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.history.sources import AXES
from workbench.plots import theme
from workbench.plots.browser_numbers import hover
from workbench.telemetry import row_views as rows

if TYPE_CHECKING:
    from workbench.history.compare import Comparison, Scaling
    from workbench.history.findings import Findings

_DASHES = ("solid", "dashed", "dotted", "dotdash")
_WIDEST_LABEL = 40
#: how the titles of figures of what cells logged begin, and how many there are at most
LOGGED = "Logged: "
_MOST_LOGGED = 8


def figures(found: Comparison) -> list[Any]:
    """Loss, throughput, gradient norm and what the cells logged over the axis, and speed-up over ranks where they
    differ: Bokeh figures with their data."""
    drawn = [_loss(found)]
    if any(np.isfinite(s.curve["tps"]).any() for s in found.compared):
        drawn.append(_throughput(found))
    if any((s.curve["grad_norm"] > 0).any() for s in found.compared):
        drawn.append(_norm(found))
    drawn += [_logged(found, column) for column in logged_columns(found)]
    if found.scaling is not None:
        drawn.append(_scaling(found.scaling))
    return drawn


def logged_columns(found: Findings) -> list[str]:
    """The columns ``log/NAME`` that any of the runs has, the first of them."""
    names = dict.fromkeys(name for s in found.compared for name in s.curve if name.startswith("log/"))
    return list(names)[:_MOST_LOGGED]


def _logged(found: Comparison, column: str) -> Any:
    drawn = theme.new_figure(f"{LOGGED}{column[4:]}", x_label=AXES[found.x], y_label="value", height=260)
    _draw(drawn, found, column, "@smooth{number}")
    return drawn


def colour(index: int) -> str:
    """Colour of a run in a comparison; they repeat after eight, with another dash."""
    return theme.RANK_COLOURS[index % len(theme.RANK_COLOURS)]


def short_label(label: str) -> str:
    """A label that fits a legend: its end, which tells runs apart."""
    return label if len(label) <= _WIDEST_LABEL else f"…{label[1 - _WIDEST_LABEL :]}"


def lines(found: Comparison, column: str) -> list[dict[str, np.ndarray]]:
    """Per run: x, y and smooth (moving average), thinned for the screen; rows without x or y left out."""
    out = []
    for run in found.compared:
        x = run.axis(found.x)
        y = run.curve.get(column, np.full(x.size, math.nan))
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        out.append(rows.thin({"x": x, "y": y, "smooth": rows.smooth(y, math.nan)}, of=["y"]))
    return out


def _loss(found: Comparison) -> Any:
    drawn = theme.new_figure("Loss", x_label=AXES[found.x], y_label="loss", height=320)
    _draw(drawn, found, "loss", "@smooth{number}")
    for index, run in enumerate(found.compared):
        steps, losses = run.validation
        if steps.size and run.curve["step"].size:
            places = np.interp(steps, run.curve["step"], run.axis(found.x))
            drawn.line(places, losses, color=colour(index), line_width=2)
            drawn.scatter(places, losses, color=colour(index), size=8, line_color=None)
    return drawn


def _throughput(found: Comparison) -> Any:
    drawn = theme.new_figure("Throughput", x_label=AXES[found.x], y_label=f"{found.counts} / s / device", height=260)
    _draw(drawn, found, "tps", "@smooth{number}")
    drawn.y_range.start = 0
    return drawn


def _norm(found: Comparison) -> Any:
    title = "Gradient norm (global L2)"
    drawn = theme.new_figure(title, x_label=AXES[found.x], y_label="norm", height=260, y_axis_type="log")
    _draw(drawn, found, "grad_norm", "@smooth{number}")
    return drawn


def _draw(drawn: Any, found: Comparison, column: str, value: str) -> None:
    from bokeh.models import ColumnDataSource

    items = []
    for index, (run, line) in enumerate(zip(found.compared, lines(found, column), strict=True)):
        source = ColumnDataSource(line)
        look = {"color": colour(index), "line_dash": _DASHES[index // len(theme.RANK_COLOURS) % len(_DASHES)]}
        each = drawn.line("x", "y", source=source, alpha=0.3, line_width=1, **look)
        smooth = drawn.line("x", "smooth", source=source, line_width=2, **look)
        label = short_label(run.label)
        tips = [("run", _tip(label)), (AXES[found.x], "@x{0,0.[00]}"), (_tip(column), value)]
        drawn.add_tools(hover(tips, renderers=[smooth], mode="mouse"))
        items.append((label, [each, smooth]))
    theme.add_legend(drawn, items)
    drawn.above[-1].ncols = 1 if len(items) > 3 else max(1, len(items))
    drawn.above[-1].orientation = "vertical" if len(items) > 3 else "horizontal"


def _tip(label: str) -> str:
    """A label inside a Bokeh tooltip: it is neither markup nor a field there."""
    out = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return out.replace("@", "&#64;").replace("$", "&#36;")


def _scaling(scaling: Scaling) -> Any:
    first = scaling.ranks[0]
    drawn = theme.new_figure("Speed-up", x_label="ranks", y_label=f"speed-up over {first}", height=260)
    every = np.linspace(first, scaling.ranks[-1], 100)
    ideal = drawn.line(every, every / first, color="#8b949e", line_dash="dashed")
    points = drawn.scatter(list(scaling.ranks), list(scaling.speed_up), size=9, color=theme.LOSS, line_color=None)
    items = [("linear", [ideal]), ("measured", [points])]
    fit = scaling.fit
    if fit is not None:
        law = [fit.speed_up(n) / fit.speed_up(first) for n in every]
        items.append(("Amdahl's law", [drawn.line(every, law, color=theme.VALIDATION, line_width=2)]))
    theme.add_legend(drawn, items)
    return drawn


def picture(found: Comparison) -> bytes:
    """PNG of loss and throughput, for viewers without scripts."""
    from workbench.plots.still.png import Pane, side_by_side

    shown = [_loss(found), _throughput(found)]
    return side_by_side([Pane(figure=figure, title=str(figure.title.text)) for figure in shown], height=340)
