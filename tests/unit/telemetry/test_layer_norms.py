"""Rows of norms become rows of gradient statistics, whatever a log holds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from workbench.core.mesh import Mesh
from workbench.core.records import Event, LayerNorms, columns_of
from workbench.telemetry.columns import empty
from workbench.telemetry.gradients import combine
from workbench.telemetry.layer_norms import LayerLists, expand, with_norms

ONE, TWO = Mesh(dp=1, pp=1, tp=1), Mesh(dp=2, pp=1, tp=1)


def columns(table: str, records: list) -> dict[str, np.ndarray]:
    out = {}
    for name, values in empty(table).items():
        column = np.empty(len(records), dtype=values.dtype)
        for row, record in enumerate(records):
            column[row] = getattr(record, name)
        out[name] = column
    return out


def lists(*told: tuple[int, object]) -> LayerLists:
    events = [
        Event(time=0.0, step=1, rank=rank, kind="layers", name="norms", value=json.dumps(value)) for rank, value in told
    ]
    return LayerLists().read(columns("events", events))


def norms(step: int, rank: int, values: list[float], scope: str = "reduced", layout: int = 1) -> LayerNorms:
    return LayerNorms(step=step, rank=rank, scope=scope, layout=layout, norms=values)


FC = {"layout": 1, "parts": [["fc", "", 6], ["head", "tp", 4]]}


def test_a_row_becomes_one_of_each_layer():
    found = expand(columns("layer_norms", [norms(3, 1, [3.0, 0.5]), norms(4, 1, [1.0, math.inf])]), lists((1, FC)), TWO)
    assert list(found) == list(columns_of("gradients"))
    assert found["step"].tolist() == [3, 3, 4, 4] and set(found["rank"]) == {1} and set(found["scope"]) == {"reduced"}
    assert found["layer"].tolist() == ["fc", "head"] * 2 and found["sharded"].tolist() == ["", "tp"] * 2
    assert found["numel"].tolist() == [6, 4] * 2
    assert found["sum_sq"].tolist() == [9.0, 0.25, 1.0, math.inf]
    assert found["nonfinite_count"].tolist() == [0, 0, 0, -1], "how many is not known"
    assert np.isnan(found["max_abs"]).all() and set(found["zero_count"]) == {-1}


def test_shards_and_replicas_are_combined_as_those_of_full_sets():
    """Two replicas of two tensor-parallel ranks: the squares of shards add up, a replicated layer counts once."""
    mesh = Mesh(dp=2, pp=1, tp=2)
    told = lists(*[(rank, FC) for rank in range(4)])
    rows = [norms(1, rank, [2.0, 3.0 + rank % 2], "local") for rank in range(4)]
    rows += [norms(1, 0, [1.0, 1.0]), norms(1, 1, [1.0, 2.0])]
    table = combine(with_norms(empty("gradients"), columns("layer_norms", rows), told, mesh), mesh)
    local = table[table["scope"] == "local"].set_index(["rank", "layer"])["norm"]
    assert all(local[rank, "fc"] == 2.0 and local[rank, "head"] == 5.0 for rank in range(4))
    reduced = table[table["scope"] == "reduced"].set_index(["rank", "layer"])["norm"]
    assert reduced[0, "head"] == pytest.approx(math.sqrt(5)) and reduced[0, "fc"] == 1.0


def test_with_one_replica_the_reduced_gradient_is_the_local_one():
    found = expand(columns("layer_norms", [norms(1, 0, [3.0, 4.0])]), lists((0, FC)), ONE)
    assert sorted(zip(found["scope"], found["layer"], found["sum_sq"], strict=True)) == [
        ("local", "fc", 9.0), ("local", "head", 16.0), ("reduced", "fc", 9.0), ("reduced", "head", 16.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "told",
    [
        {"layout": 2, "parts": FC["parts"]},
        {"layout": 1, "parts": [["fc", "", 6]]},
        {"layout": 1, "parts": [["fc", "", 6], ["head", "tp"]]},
        {"layout": 1, "parts": "fc"},
        {"layout": None, "parts": FC["parts"]},
        [],
        "nonsense",
    ],
)
def test_rows_whose_layers_are_not_known_are_left_out(told):
    found = expand(columns("layer_norms", [norms(1, 0, [3.0, 4.0])]), lists((0, told)), TWO)
    assert list(found) == list(columns_of("gradients")) and found["step"].size == 0


def test_a_log_without_such_rows_is_as_it_was():
    gradients = {name: values.copy() for name, values in empty("gradients").items()}
    assert with_norms(gradients, empty("layer_norms"), lists(), TWO) is gradients
