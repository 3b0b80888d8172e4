"""Cells of heat maps: thinned, held over steps that have no value of their own, and ended where a run ends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.fake_run import fake_spec, write_spec
from tests.unit.plots.test_formulas import finish, opened, step
from workbench.core.columns import Columns
from workbench.core.config import MonitorSpec
from workbench.plots import (
    cells,
)
from workbench.rundir.log import RankLogWriter
from workbench.telemetry import row_views as rows
from workbench.telemetry.store import Store


def test_thinned_cells_leave_no_gap() -> None:
    steps = np.repeat(np.arange(1000.0), 40)
    mark = (steps == 500).astype(float)
    columns = {"step": steps, "until": steps + 1, "row": np.tile(np.arange(40.0), 1000), "value": steps, "mark": mark}
    few = cells.thin(columns, budget=4000)
    assert few["step"].size <= 4000
    assert few["until"].max() == 1000 and few["value"].max() == 999
    assert few["mark"].sum() == 40, "what is marked stays so"
    own = few["row"] == 0
    np.testing.assert_array_equal(few["until"][own][:-1], few["step"][own][1:])


def test_thinned_cells_keep_a_gap_and_the_newest() -> None:
    steps = np.concatenate([np.arange(500.0), np.arange(900.0, 1000.0)])
    few = cells.thin({"step": steps, "until": steps + 1, "row": np.zeros(600), "alpha": np.ones(600)}, budget=100)
    assert few["step"].size <= 101 and few["until"].max() == 1000
    assert np.count_nonzero(few["until"][:-1] < few["step"][1:]) == 1


def held_run(path: Path, last: int, *, ended: bool) -> Store:
    """A run of one rank without any gradients, which has trained ``last`` steps."""
    path.mkdir(exist_ok=True)
    write_spec(path, replace(fake_spec(ranks=1), monitor=MonitorSpec()))
    with RankLogWriter(path, 0) as writer:
        for number in range(1, last + 1):
            writer.append(step(number, 0))
        if ended:
            finish(writer)
    return opened(path)


def values_at(steps: list[float], row: list[float]) -> Columns:
    return {"step": np.array(steps), "row": np.array(row), "colour": np.array(steps) * 10}


def spans(found: Columns, row: float = 0.0) -> list[tuple[float, float, float, float]]:
    own = found["row"] == row
    names = ("measured", "step", "until", "alpha")
    return [tuple(map(float, each)) for each in zip(*(found[name][own] for name in names), strict=True)]


def test_a_value_is_held_paler_with_its_age_and_not_for_ever(tmp_path: Path) -> None:
    """A value of step 1 is not stretched to that of step 130: 4 steps are the interval of a first value, and 4 times
    that is the longest that any value is shown."""
    found, _ = cells.hold(values_at([1, 130, 150], [0, 0, 0]), None, held_run(tmp_path, 153, ended=True))
    assert spans(found) == [
        (1, 1, 2, 1.0),
        (1, 2, 3, 0.75),
        (1, 3, 5, 0.6),
        (1, 5, 9, 0.35),
        (1, 9, 17, 0.2),
        (1, 17, 65, 0.0),
        (1, 65, 130, 0.0),
        (130, 130, 131, 1.0),
        (130, 131, 150, 0.75),
        (150, 150, 151, 1.0),
        (150, 151, 154, 0.75),
    ]
    assert found["edge"].tolist() == (found["alpha"] == 1).tolist()
    assert (found["colour"] == 10 * found["measured"]).all()


def test_values_of_every_step_need_no_paler_cells(tmp_path: Path) -> None:
    steps = [float(number) for number in range(1, 11) for _ in range(2)]
    found, _ = cells.hold(values_at(steps, [0.0, 1.0] * 10), None, held_run(tmp_path, 10, ended=True))
    assert spans(found, 1) == [(number, number, number + 1, 1.0) for number in map(float, range(1, 11))]


def test_the_axis_reaches_as_far_as_the_run(tmp_path: Path) -> None:
    """One empty cell is enough for it, of however many rows."""
    store = held_run(tmp_path, 150, ended=True)
    for by in ("row", None):
        found, _ = cells.hold(values_at([1, 1, 1], [0, 1, 2]), None, store, by=by)
        assert found["until"].max() == 151
        assert found["until"][found["alpha"] > 0].max() == 17 and np.count_nonzero(found["alpha"] == 0) == 2


def test_rows_end_apart_but_a_histogram_ends_as_a_whole(tmp_path: Path) -> None:
    store = held_run(tmp_path, 8, ended=True)
    measured = values_at([1, 1, 4], [0, 1, 0])
    apart, _ = cells.hold(measured, None, store)
    assert spans(apart, 1)[-1] == (1, 5, 9, 0.35)
    whole, _ = cells.hold(measured, None, store, by=None)
    assert spans(whole, 1)[-1] == (1, 3, 4, 0.6)


def test_a_running_run_holds_its_last_value_as_far_as_it_has_come(tmp_path: Path) -> None:
    """Read by pieces the cells are those that are read at once."""
    last_cells: Columns | None = None
    parts: list[Columns] = []
    for number, (last, new) in enumerate([(9, [1.0, 6.0]), (16, []), (30, []), (31, [31.0])]):
        store = held_run(tmp_path / str(number), last + 2, ended=False)
        found, last_cells = cells.hold(values_at(new, [0.0] * len(new)), last_cells, store)
        parts.append(found)
        assert found["until"].max(initial=0) <= last + 1
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    at_once, _ = cells.hold(values_at([1.0, 6.0, 31.0], [0.0] * 3), None, store)
    assert spans(joined) == spans(at_once)


def test_what_only_full_sets_have_is_carried_on(tmp_path: Path) -> None:
    nan = math.nan
    first = {"step": np.array([1.0, 1, 2]), "row": np.array([0.0, 1, 0]), "peak": np.array([5.0, 7, nan])}
    store = held_run(tmp_path, 2, ended=False)
    carried = cells.carry(first, None, ["peak"], since="of")
    assert carried["peak"].tolist() == [5, 7, 5] and carried["of"].tolist() == [1, 1, 1]
    _, before = cells.hold(carried, None, store)
    later = {"step": np.array([3.0, 3, 4]), "row": np.array([0.0, 1, 1]), "peak": np.array([nan, nan, 9])}
    carried = cells.carry(later, before, ["peak"], since="of")
    assert carried["peak"].tolist() == [5, 7, 9] and carried["of"].tolist() == [1, 1, 4]


def test_a_cell_of_phases_is_not_stretched_over_a_gap() -> None:
    steps = np.array([4.0, 8, 12, 100, 104])
    assert rows.spacing(steps, 0.0).tolist() == [8, 12, 20, 104, 108]
