"""What a figure says beside its values: marks of what was done, tips, a legend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bokeh.models import ColumnDataSource, HBar, HoverTool, VSpan

from tests.fake_run import make_fake_run
from tests.unit.plots.test_plots import store_of
from workbench.plots import event_lines, logged, plots, theme
from workbench.plots.base import Plot
from workbench.telemetry import row_views as rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("plot", [plot for plot in plots() if plot.AXIS], ids=lambda plot: plot.NAME)
def test_what_was_done_is_marked_in_every_figure_over_steps_or_time(plot: Plot, run: Path) -> None:
    """Over the cells of a heat map, which would hide it, and within the frame."""
    store = store_of(run)
    columns, _ = plot.columns(store, None)
    drawn = plot.figure(ColumnDataSource(dict(columns)))
    event_lines.add_marks(drawn, event_lines.make_marks(store))
    lines = [each for each in drawn.renderers if isinstance(each.glyph, VSpan)]
    assert lines[-1].glyph.x == plot.AXIS
    is_heat_map = any(isinstance(each.glyph, HBar) for each in drawn.renderers)
    assert lines[-1].level == ("glyph" if is_heat_map else "underlay") and drawn.renderers[-1] is lines[-1]
    rows_of = lines[-1].data_source.data
    assert rows_of["label"][0].startswith(f"step {rows_of['step'][0]}: ")
    assert any("learning rate" in label for label in rows_of["label"])
    assert not any("was written" in label for label in rows_of["label"]), "nobody asked for it"
    begin, end = rows.progress(store).begin, float(store.table("steps")["time"].max())
    assert all(0 <= time <= end - begin for time in rows_of["time"])


#: of each figure, what its tips say beside values
TOLD = {
    **dict.fromkeys(("loss", "throughput", "learning_rate", "grad_norm", "noise", "exposed"), ("step",)),
    **dict.fromkeys(("traffic", "bandwidth"), ("step", "collective")),
    **dict.fromkeys(("utilisation", "memory", "busy"), ("rank", "elapsed")),
    **dict.fromkeys(("gradients", "update_ratio"), ("step", "layer")),
    **dict.fromkeys(("activations", "activation_gradients", "attention", "routers", "stable_rank"), ("step", "layer")),
    **dict.fromkeys(("lag", "cosine"), ("rank", "step")),
    **dict.fromkeys(("histogram", "validation", "metrics", "logged", "logged_second", "logged_third"), ("step",)),
    "phase_bars": ("rank", "phase"),
    "timeline": ("rank", "step", "phase"),
    "confusion": ("true class", "predicted"),
}


@pytest.mark.parametrize("plot", plots(), ids=lambda plot: plot.NAME)
def test_a_hover_tells_where_and_how_much(plot: Plot, run: Path) -> None:
    columns, _ = plot.columns(store_of(run), None)
    drawn = plot.figure(ColumnDataSource(dict(columns)))
    tips = [tool.tooltips for tool in drawn.toolbar.tools if isinstance(tool, HoverTool)]
    told = [{name.split(" (")[0] for name, _ in each} for each in tips if isinstance(each, list)]
    wanted = set(TOLD[plot.NAME])
    assert any(names > wanted for names in told), told
    assert all("step" in names for names in told if not names > wanted), "a spike, a validation: at a step"


def test_a_legend_of_long_names_has_the_lines_and_the_height_that_it_needs() -> None:
    """At 900 px a figure has half of the page: five short names stand in a line, nine long ones one below another."""
    short, long = (
        [f"a {place}" for place in range(5)],
        [f"encoder.layers.{place}.attention/entropy" for place in range(9)],
    )
    assert [theme.legend_lines(labels) for labels in (short, short * 2, long)] == [1, 2, 9]
    columns = {"step": np.arange(2.0), **{f"value {name}": np.arange(2.0) for name in [*long, "x" * 99]}}
    drawn = logged.figure(ColumnDataSource(columns))
    (legend,) = drawn.legend
    labels = [item.label.value for item in legend.items]
    assert labels[:9] == long and len(labels[9]) == 52
    assert legend.ncols == 1 and drawn.height == logged.height(columns) == 250 + 8 * 20
