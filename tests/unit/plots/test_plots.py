"""Figures: columns that stream, and what is drawn on them."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, Line, Segment

from tests.fake_run import fake_spec, layer_names, make_fake_run, write_spec
from workbench.core.columns import Columns
from workbench.core.records import DeviceSample, Event, GradientStats, StepRecord
from workbench.plots import (
    ALL,
    busy,
    gradients,
    loss,
    memory,
    plots,
    theme,
    throughput,
    utilisation,
    validation,
)
from workbench.plots.base import TABS, Plot
from workbench.plots.still.picture import still
from workbench.plots.still.run_picture import picture
from workbench.rundir.log import RankLogWriter
from workbench.telemetry import row_views as rows
from workbench.telemetry.derive import global_metrics
from workbench.telemetry.gradients import combine
from workbench.telemetry.store import Store

HOSTILE = ["</script><script>alert(1)</script>", "a\"b'c", "model.layers.0.mlp", ""]


def opened(path: Path) -> Store:
    store = Store(path)
    store.refresh()
    return store


#: that of a run which no test changes, read once
store_of = functools.cache(opened)


def record(step: int, rank: int) -> StepRecord:
    return StepRecord(
        time=float(step), step=step, rank=rank, loss=1.0 / step, lr=0.1, grad_sq=1.0, tokens=64, step_time_ms=10.0,
        data_wait_ms=0.1,
    )  # fmt: skip


def statistics(
    layer: str, *, rank: int = 0, scope: str = "reduced", sum_sq: float = 4.0, bad: int = 0
) -> GradientStats:
    return GradientStats(
        step=20, rank=rank, layer=layer, scope=scope, sharded="", numel=8, sum=0.0, sum_sq=sum_sq, max_abs=1.0,
        zero_count=0, nonfinite_count=bad,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_run(tmp_path_factory.mktemp("runs") / "run")


KINDS: dict[str, dict[str, Any]] = {
    "no rows": {},
    "two ranks": {"ranks": 2},
    "twelve ranks": {"ranks": 12},
    "pipeline": {"ranks": 4, "plugin": "hybrid", "tp": 2, "pp": 2},
}


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {kind: tmp_path_factory.mktemp(kind.replace(" ", "-")) for kind in KINDS}
    for kind, options in KINDS.items():
        if options:
            make_fake_run(paths[kind], steps=60, **options)
        else:
            write_spec(paths[kind], fake_spec())
    return paths


@pytest.mark.parametrize("plot", plots(), ids=lambda plot: plot.NAME)
@pytest.mark.parametrize("kind", KINDS)
def test_contract(plot: Plot, kind: str, of_kind: dict[str, Path]) -> None:
    store = store_of(of_kind[kind])
    columns, cursor = plot.columns(store, None)
    assert len({values.size for values in columns.values()}) == 1
    needs_replicas = plot.NAME in ("cosine", "noise") and kind == "pipeline"
    needs_many_ranks = plot.NAME == "busy" and kind != "twelve ranks"
    assert (next(iter(columns.values())).size > 0) == (kind != "no rows" and not needs_replicas | needs_many_ranks)
    nothing, _ = plot.columns(store, cursor)
    assert list(nothing) == list(columns)
    assert all(values.size == 0 for values in nothing.values())
    drawn = plot.figure(ColumnDataSource(dict(columns)))
    assert drawn.sizing_mode == "stretch_width"
    assert plot.TAB in TABS and plot.AXIS in ("step", "time", "")
    if kind in ("no rows", "twelve ranks"):  # without columns of its own, and with all
        assert json.dumps(json_item(drawn))
    for mode in theme.COLOURS:
        theme.apply(drawn, mode)


def test_order_and_names() -> None:
    assert [plot.NAME for plot in plots()] == list(ALL)


def test_titles_fit_beside_the_names_of_layers() -> None:
    """In a page of 640 px, which JupyterLab leaves of a window of 900, names of layers take a third."""
    assert [plot.TITLE for plot in plots() if len(plot.TITLE) > 55] == []


@pytest.mark.parametrize("name", ALL)
def test_streamed_columns_are_those_read_at_once(name: str, tmp_path: Path, run: Path) -> None:
    """A store that grows by pieces gives the same rows as one that is read whole."""
    plot = next(plot for plot in plots() if name == plot.NAME)
    whole, _ = plot.columns(store_of(run), None)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "spec.toml").write_bytes((run / "spec.toml").read_bytes())
    store, parts, cursor = Store(copy), [], None
    for share in (0.1, 0.3, 0.35, 0.8, 1.0):
        for path in run.glob("*/*.arrow"):
            target = copy / path.relative_to(run)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        store.refresh()
        columns, cursor = plot.columns(store, cursor)
        parts.append(columns)
    if getattr(plot, "REPLACE", False):  # the last content is the whole
        parts = [part for part in parts if next(iter(part.values())).size][-1:]
    for key, expected in whole.items():
        joined = np.concatenate([part[key] for part in parts])
        if key in ("at", "measured", "after", "since"):
            assert set(joined[~np.isnan(joined)]) == set(expected[~np.isnan(expected)])
        elif expected.dtype == object:
            assert list(joined) == list(expected)
        else:
            np.testing.assert_allclose(joined, expected)


def test_loss_shows_global_values_and_each_validation(run: Path) -> None:
    store = store_of(run)
    columns, _ = loss.columns(store, None)
    np.testing.assert_allclose(columns["loss"], global_metrics(store.table("steps"), store.mesh)["loss"])
    assert list(columns["at"][~np.isnan(columns["at"])]) == [50, 100, 150, 200]


def test_metrics_get_lines_of_their_own_as_they_come(tmp_path: Path) -> None:
    """Shares are in percent, others in their own unit; what was not measured at a step is NaN."""
    write_spec(tmp_path, fake_spec())
    told = [(2, "loss", 2.5), (2, "accuracy", 0.25), (4, "accuracy", 0.5), (4, "r2", 0.5), (4, "matrix", [[1]])]
    by_name = {plot.NAME: plot for plot in plots()}
    with RankLogWriter(tmp_path, 0) as writer:
        for step, name, value in told:
            writer.event("validation", name, value, step=step)
    store = opened(tmp_path)
    shares, cursor = by_name["validation"].columns(store, None)
    others, _ = by_name["metrics"].columns(store, None)
    assert {name: column.tolist() for name, column in shares.items()} == {"step": [2, 4], "metric accuracy": [25, 50]}
    assert {name: column.tolist() for name, column in others.items()} == {"step": [4], "metric r2": [0.5]}
    with RankLogWriter(tmp_path, 1) as writer:
        writer.event("validation", "f1", 0.125, step=6)
    store.refresh()
    shares, _ = by_name["validation"].columns(store, cursor)
    np.testing.assert_array_equal(shares["metric accuracy"], [25, 50, math.nan])
    np.testing.assert_array_equal(shares["metric f1"], [math.nan, math.nan, 12.5])
    drawn = by_name["validation"].figure(ColumnDataSource(dict(shares)))
    assert [item.label.value for item in drawn.legend[0].items] == ["accuracy", "f1"]


def test_late_validation_rides_on_a_repeat_of_the_last_row(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=1))
    store = Store(tmp_path)
    with RankLogWriter(tmp_path, 0) as writer:
        writer.append(record(1, 0))
        writer.flush()
        store.refresh()
        _, cursor = loss.columns(store, None)
        writer.event("validation", "loss", 2.5, step=1)
        writer.flush()
        store.refresh()
        late, _ = loss.columns(store, cursor)
    assert np.isnan(late.pop("spike")).all() and np.isnan(late.pop("spike_at")).all()
    assert np.isnan(late.pop("after")).all() and np.isnan(late.pop("since")).all()
    assert {name: list(values) for name, values in late.items()} == {
        "step": [1], "loss": [1.0], "smooth": [1.0], "at": [1], "measured": [2.5]
    }  # fmt: skip


def test_validations_are_joined_in_every_figure(run: Path) -> None:
    """From each to the next, by a line of the same colour and width, live and in a still picture."""
    columns, _ = loss.columns(store_of(run), None)
    shown = ~np.isnan(columns["measured"])
    assert columns["after"][shown].tolist()[1:] == columns["at"][shown].tolist()[:-1] == [50, 100, 150]
    np.testing.assert_array_equal(columns["since"][shown][1:], columns["measured"][shown][:-1])
    drawn = loss.figure(ColumnDataSource(dict(columns)))
    of_loss = next(each.glyph for each in drawn.renderers if isinstance(each.glyph, Segment))
    accuracy = validation.figure(ColumnDataSource({"step": [1.0, 2.0], "accuracy": [10.0, 20.0]}))
    of_accuracy = next(each.glyph for each in accuracy.renderers if isinstance(each.glyph, Line))
    for look in ("line_color", "line_width", "line_dash"):
        assert getattr(of_loss, look) == getattr(of_accuracy, look)
    picture = still(drawn, title="Loss")
    assert not picture.left_out and f"validation: first {columns['measured'][shown][0]:.4g}" in picture.words


def test_a_step_is_given_once_all_ranks_have_it(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=2))
    store = Store(tmp_path)
    with RankLogWriter(tmp_path, 0) as first, RankLogWriter(tmp_path, 1) as second:
        for step in (1, 2, 3):
            first.append(record(step, 0))
        second.append(record(1, 1))
        first.flush()
        second.flush()
        store.refresh()
        metrics, cursor = rows.metrics_since(store, None)
        assert list(metrics["step"]) == [1]
        second.append(record(2, 1))
        second.flush()
        store.refresh()
        metrics, cursor = rows.metrics_since(store, cursor)
        assert list(metrics["step"]) == [2]


def test_gradients_are_those_of_combine_in_model_order(run: Path) -> None:
    store = store_of(run)
    columns, _ = gradients.columns(store, None)
    raw = store.table("gradients")
    expected = combine(raw, store.mesh)
    expected = expected[expected["scope"] == "reduced"].drop_duplicates(["step", "layer"])
    norms = {
        (step, layer): norm
        for step, layer, norm in zip(expected["step"], expected["layer"], expected["norm"], strict=True)
    }
    shown = columns["edge"] == 1
    assert len(norms) == shown.sum()
    for step, layer, norm in zip(columns["measured"], columns["layer"], columns["norm"], strict=True):
        assert norm == norms[step, layer]
    order = dict(zip(columns["row"], columns["layer"], strict=True))
    assert [order[row] for row in sorted(order)] == layer_names(8)


def test_pipeline_stages_follow_each_other(tmp_path: Path) -> None:
    store = opened(make_fake_run(tmp_path / "run", ranks=2, plugin="hybrid", pp=2, steps=40))
    columns, _ = gradients.columns(store, None)
    order = dict(zip(columns["row"], columns["layer"], strict=True))
    assert [order[row] for row in sorted(order)] == layer_names(8)


def test_ranks_that_share_out_the_reduced_gradients(tmp_path: Path) -> None:
    """Rows are in model order though each rank logs every other layer, and a rank without any is not waited for."""
    write_spec(tmp_path, fake_spec(ranks=3))
    layers = ["z", "m", "a"]
    for rank in range(3):
        with RankLogWriter(tmp_path, rank) as writer:
            mine = {"local": layers, "reduced": layers[rank::2] if rank < 2 else []}
            for scope in ("reduced", "local"):
                for layer in mine[scope]:
                    writer.append(statistics(layer, rank=rank, scope=scope))
            for step in range(19, 23):
                writer.append(record(step, rank))
    columns, _ = gradients.columns(opened(tmp_path), None)
    order = dict(zip(columns["row"], columns["layer"], strict=True))
    assert [order[row] for row in sorted(order)] == layers


def test_zero_and_nonfinite_gradients(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=1))
    with RankLogWriter(tmp_path, 0) as writer:
        for layer, sum_sq, bad in (("a", 0.0, 0), ("b", 4.0, 3)):
            writer.append(statistics(layer, sum_sq=sum_sq, bad=bad))
        writer.event("state", "finished", step=20)
    columns, _ = gradients.columns(opened(tmp_path), None)
    assert math.isnan(columns["colour"][0]) and columns["norm"][0] == 0
    assert list(columns["mark"]) == [0, 1]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    store = opened(make_fake_run(tmp_path / "run", names=HOSTILE, steps=40))
    columns, _ = gradients.columns(store, None)
    assert set(columns["layer"]) == set(HOSTILE)
    assert picture(store, title="$x_1$ <b>").startswith(b"\x89PNG")


def test_utilisation_of_many_ranks_is_a_band(tmp_path: Path) -> None:
    store = opened(make_fake_run(tmp_path / "run", ranks=40, steps=20))
    columns, _ = utilisation.columns(store, None, 7)
    assert list(columns) == ["time", "cpu_lowest", "cpu_median", "cpu_highest", "cpu_chosen"]
    assert not np.isnan(columns["cpu_chosen"]).any()
    assert (columns["cpu_lowest"] <= columns["cpu_median"]).all()
    assert (columns["cpu_median"] <= columns["cpu_highest"]).all()


@pytest.mark.parametrize("ranks", [2, 40, 130])
def test_a_pause_is_a_gap_over_elapsed_time(tmp_path: Path, ranks: int) -> None:
    """Ranks are sampled while they wait, but nothing is drawn of it: lines break, and cells are left out."""
    path = make_fake_run(tmp_path / "run", ranks=ranks, steps=60, layers=1, grad_every=0)
    begin = rows.progress(opened(path)).begin
    for rank in range(ranks):
        with RankLogWriter(path, rank) as writer:
            for state, at in (("paused", 2.0), ("running", 4.0)):
                writer.append(Event(time=begin + at, step=8, rank=rank, kind="state", name=state))
    store = opened(path)
    for plot in (utilisation, memory):
        columns, _ = plot.columns(store, None)
        inside = (columns["time"] > 2) & (columns["time"] < 4)
        values = np.stack([each for name, each in columns.items() if not name.endswith(("time", "chosen"))])
        assert np.isnan(values[:, inside]).all() and inside.sum() == 1
        assert not np.isnan(values[:, ~inside]).any() and columns["time"].max() > 5
    cells, _ = busy.columns(store, None)
    if ranks == 2:
        assert not cells["time"].size, "the lines of utilisation say the same"
        return
    assert not ((cells["until"] > 2) & (cells["time"] < 4)).any() and cells["time"].max() > 5


def test_a_time_without_samples_is_a_gap_however_it_is_read(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=1))
    numbers = {"threads": 1, "net_sent_bytes": 0, "net_received_bytes": 0, "disk_read_bytes": 0, "disk_write_bytes": 0}
    sample = DeviceSample(time=0.0, rank=0, step=0, phase="", cpu_percent=9.0, rss_bytes=1, device="cpu", **numbers)
    parts: list[Columns] = []
    cursor = None
    store = Store(tmp_path)
    with RankLogWriter(tmp_path, 0) as writer:
        for time in (0.1, 0.6, 1.1, 31.1, 31.6, 32.6, math.nan):
            writer.append(replace(sample, time=time)) if time < 40 else writer.event("state", "finished", step=0)
            writer.flush()
            store.refresh()
            columns, cursor = utilisation.columns(store, cursor)
            parts.append(columns)
    whole, _ = utilisation.columns(opened(tmp_path), None)
    gaps = whole["time"][np.isnan(whole["cpu_0"])]
    assert gaps.size == 1 and 1.5 < gaps[0] < 31
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_long_runs_are_thinned_and_keep_their_ends() -> None:
    generator = np.random.default_rng(0)
    many: Columns = {"step": np.arange(1, 100_001, dtype=float), "loss": generator.normal(size=100_000)}
    many |= {f"rank_{rank}": generator.normal(size=100_000) for rank in range(4)}
    spikes = {name: np.arange(900 * start, 100_000, 5000) for start, name in enumerate(many) if name != "step"}
    for sign, (name, at) in enumerate(spikes.items()):
        many[name][at] = 50.0 * (-1) ** sign
    keep = np.zeros(100_000, dtype=bool)
    keep[777] = True
    for of in (["loss"], None):
        few = rows.thin(many, keep=keep, of=of)
        assert few["step"].size <= rows.BUDGET + 1
        assert (few["step"][0], few["step"][-1]) == (1, 100_000)
        assert 778 in few["step"]
        planted = {name: at for name, at in spikes.items() if of is None or name in of}
        assert planted and all(set(at + 1) <= set(few["step"]) for at in planted.values())


GROWING = [plot for plot in plots() if not getattr(plot, "REPLACE", False)]


@pytest.mark.parametrize("plot", GROWING, ids=lambda plot: plot.NAME)
def test_whatever_a_figure_shows_can_be_thinned(plot: Plot, run: Path, of_kind: dict[str, Path]) -> None:
    columns, _ = plot.columns(store_of(of_kind["twelve ranks"] if plot.NAME == "busy" else run), None)
    rows_here = len(next(iter(columns.values())))
    times, along = math.ceil(3 * rows.CELLS / rows_here), {next(iter(columns)), "until", plot.AXIS}
    many: Columns = {
        name: np.concatenate([values + 1e4 * turn if name in along else values for turn in range(times)])
        for name, values in columns.items()
    }
    few = getattr(plot, "thin", rows.thin)(many)
    assert list(few) == list(columns)
    assert 0 < len(next(iter(few.values()))) < rows_here * times


def test_throughput_starts_at_zero(run: Path) -> None:
    columns, _ = throughput.columns(store_of(run), None)
    assert throughput.figure(ColumnDataSource(dict(columns))).y_range.start == 0


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_picture_is_small(state: str, tmp_path: Path) -> None:
    data = picture(opened(make_fake_run(tmp_path / "run", state=state, steps=400)))
    assert data.startswith(b"\x89PNG")
    assert len(data) < 100_000


@pytest.mark.parametrize("unit", ["tokens", "samples"])
def test_throughput_says_what_it_counts(tmp_path: Path, unit: str) -> None:
    path = make_fake_run(tmp_path / "run", steps=4, unit=unit)
    columns, _ = throughput.columns(opened(path), None)
    drawn = throughput.figure(ColumnDataSource(dict(columns)))
    assert drawn.yaxis.axis_label == f"{unit} / s / device"
    assert columns[unit].tolist() == rows.metrics_since(opened(path), None)[0]["tps"].tolist()
