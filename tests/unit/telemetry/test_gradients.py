"""Parts are combined to what NumPy says of the whole gradient."""

import numpy as np
import pandas as pd
import pytest

from workbench.mesh import Mesh
from workbench.records import columns_of
from workbench.telemetry.gradients import combine

generator = np.random.default_rng(0)


def part(rank: int, scope: str, sharded: str, values: np.ndarray, layer: str = "fc") -> dict:
    finite = values[np.isfinite(values)]
    return {"step": 1, "rank": rank, "layer": layer, "scope": scope, "sharded": sharded, "numel": values.size,
            "sum": finite.sum(), "sum_sq": (finite**2).sum(), "max_abs": np.abs(finite).max(),
            "zero_count": (values == 0).sum(), "nonfinite_count": values.size - finite.size,
            "dot": np.nan, "dot_kind": "", "underflow_count": 0}  # fmt: skip


def table(parts: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in parts]) for name in columns_of("gradients")}


def check(row: pd.Series, values: np.ndarray) -> None:
    assert row["norm"] == pytest.approx(np.linalg.norm(values))
    assert row["max_abs"] == pytest.approx(np.abs(values).max())
    assert row["mean"] == pytest.approx(values.mean())
    assert row["zero_fraction"] == pytest.approx((values == 0).mean())


def test_data_parallel_local_apart_and_reduced_once() -> None:
    first, second = generator.normal(size=(2, 12))
    first[3] = 0
    mean = (first + second) / 2
    # only rank 0 logged the reduced one: replicas share the work
    parts = [part(0, "local", "", first), part(1, "local", "", second), part(0, "reduced", "", mean)]
    rows = combine(table(parts), Mesh(dp=2)).set_index(["scope", "rank"])
    check(rows.loc["local", 0], first)
    check(rows.loc["local", 1], second)
    for rank in (0, 1):
        check(rows.loc["reduced", rank], mean)
    assert rows.loc[("reduced", 0), "replicas"] == 2 and rows.loc[("local", 0), "replicas"] == 1


def test_zero_slices_are_summed() -> None:
    whole = generator.normal(size=10)
    parts = [part(0, "reduced", "dp", whole[:5]), part(1, "reduced", "dp", whole[5:])]
    rows = combine(table(parts), Mesh(dp=2))
    assert rows["shards"].tolist() == [2, 2]
    for _, row in rows.iterrows():
        check(row, whole)


def test_tensor_parallel_weight_is_split_and_bias_replicated() -> None:
    weight, bias = generator.normal(size=8), generator.normal(size=3)
    parts = []
    for dp in (0, 1):
        for tp in (0, 1):
            rank = dp * 2 + tp
            parts.append(part(rank, "local", "tp", (1 + dp) * weight[tp * 4 : tp * 4 + 4]))
            parts.append(part(rank, "local", "", (1 + dp) * bias))
    rows = combine(table(parts), Mesh(dp=2, tp=2)).query("scope == 'local'").set_index("rank")
    whole = np.concatenate([weight, bias])
    for rank in range(4):
        check(rows.loc[rank], (1 + rank // 2) * whole)
    assert rows["shards"].unique().tolist() == [2]


def test_nonfinite_are_counted_and_left_out() -> None:
    values = np.array([3.0, np.nan, 4.0, np.inf])
    row = combine(table([part(0, "local", "", values)]), Mesh()).query("scope == 'local'").iloc[0]
    assert row["nonfinite_count"] == 2 and row["norm"] == 5.0


def test_no_rows() -> None:
    assert list(combine(table([]), Mesh()).columns)[:4] == ["step", "rank", "layer", "scope"]
