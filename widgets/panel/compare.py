"""The figures of the tab Compare, which show several runs aligned by step, tokens or time.

Each figure has one source per run ("run0", "run1"), which the browser fills with the rows of the run's spine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from widgets.page import wire
from workbench.plots import theme
from workbench.plots.browser_numbers import hover
from workbench.rundir.directory import run_name

X = {"step": "step", "tokens": "tokens (all ranks)", "time": "seconds since the first sample"}
_FIGURES = (
    ("compare_loss", "Loss", "loss", "loss", "{number}", "linear"),
    ("compare_tps", "Throughput", "tps", "throughput", "{number}", "linear"),
    ("compare_norm", "Gradient norm (global L2)", "grad_norm", "norm", "{number}", "log"),
)
_WIDEST = 22
COLUMNS = ("step", "time", "tokens", "loss", "tps", "grad_norm")


def short_labels(names: list[str]) -> list[str]:
    """Return short labels for run directories: the runs' names when these differ, else the directories' names.

    A label has at most ``_WIDEST`` characters, so that two of them fit into half of a page of 900 px.
    """
    own = [run_name(Path(name)) for name in names]
    chosen = own if len(set(own)) == len(own) else names
    return [name if len(name) <= _WIDEST else f"…{name[1 - _WIDEST :]}" for name in chosen]


def figures(names: list[str]) -> list[dict[str, Any]]:
    """Return the figure items of the tab Compare. ``names``: the run directories' names, in order."""
    from bokeh.models import ColumnDataSource

    items = []
    labels = short_labels(names)
    for name, title, column, label, number, scale in _FIGURES:
        drawn = theme.new_figure(title, x_label="step", y_label=label, height=270, y_axis_type=scale)
        entries = []
        for place, run in enumerate(labels):
            source = ColumnDataSource({key: [] for key in COLUMNS}, name=f"run{place}")
            line = drawn.line(
                "step", column, source=source, color=theme.rank_colour(place), line_dash=theme.DASHES[place % 2],
                line_width=1.8, alpha=0.9,
            )  # fmt: skip
            entries.append((run, [line]))
            tips = [("run", run), ("step", "@step{0}"), ("tokens", "@tokens{0,0}"), (label, f"@{column}{number}")]
            drawn.add_tools(hover(tips, renderers=[line], visible=place == 0))
        theme.add_legend(drawn, entries)
        if name == "compare_tps":
            drawn.y_range.start = 0
        about = {"name": name, "title": title, "tab": "compare", "axis": "", "wide": name == "compare_loss"}
        items.append({**about, **wire.item_of(theme.finish(drawn))})
    return items
