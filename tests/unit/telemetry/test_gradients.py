"""Parts are combined to what NumPy says of the whole gradient."""

import numpy as np
import pandas as pd
import pytest

from workbench.core.mesh import Mesh
from workbench.core.records import columns_of
from workbench.telemetry.gradients import combine, combine_histograms, combine_weights

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


def test_cosine_and_norm_ratio() -> None:
    gradients = generator.normal(size=(3, 20))
    mean = gradients.mean(axis=0)
    parts = [
        part(rank, "local", "", own) | {"dot": own @ mean, "dot_kind": "exact"} for rank, own in enumerate(gradients)
    ]
    rows = combine(table([*parts, part(0, "reduced", "", mean)]), Mesh(dp=3))
    local = rows[rows["scope"] == "local"].set_index("rank")
    for rank, own in enumerate(gradients):
        norms = np.linalg.norm(own), np.linalg.norm(mean)
        assert local.loc[rank, "cosine"] == pytest.approx(own @ mean / (norms[0] * norms[1]))
        assert local.loc[rank, "norm_ratio"] == pytest.approx(norms[0] / norms[1])
    assert set(local["cosine_kind"]) == {"exact"}
    assert rows[rows["scope"] == "reduced"][["cosine", "norm_ratio"]].isna().all(axis=None)
    unknown = combine(table([part(r, "local", "", own) for r, own in enumerate(gradients)]), Mesh(dp=3))
    assert unknown["cosine"].isna().all() and set(unknown["cosine_kind"]) == {""}


def test_cosine_of_two_follows_from_norms() -> None:
    first, second = generator.normal(size=(2, 20))
    mean = (first + second) / 2
    parts = [part(0, "local", "", first), part(1, "local", "", second), part(0, "reduced", "", mean)]
    rows = combine(table(parts), Mesh(dp=2)).query("scope == 'local'")
    expected = [own @ mean / (np.linalg.norm(own) * np.linalg.norm(mean)) for own in (first, second)]
    assert rows["cosine"].tolist() == pytest.approx(expected)
    assert set(rows["cosine_kind"]) == {"norms"}


def test_cosine_over_a_slice_says_so() -> None:
    gradients = generator.normal(size=(3, 12))
    mean = gradients.mean(axis=0)
    parts = []
    for rank, own in enumerate(gradients):
        slice_ = slice(4 * rank, 4 * rank + 4)
        parts.append(part(rank, "local", "", own))
        parts.append(part(rank, "slice", "dp", own[slice_]) | {"dot": own[slice_] @ mean[slice_], "dot_kind": "slice"})
        parts.append(part(rank, "reduced", "dp", mean[slice_]))
    rows = combine(table(parts), Mesh(dp=3))
    assert set(rows["scope"]) == {"local", "reduced"}
    for _, row in rows[rows["scope"] == "local"].iterrows():
        slice_ = slice(4 * row["rank"], 4 * row["rank"] + 4)
        own, other = gradients[row["rank"]][slice_], mean[slice_]
        assert row["cosine"] == pytest.approx(own @ other / (np.linalg.norm(own) * np.linalg.norm(other)))
        assert row["cosine_kind"] == "slice"
        check(row, gradients[row["rank"]])


def test_a_mesh_of_three_axes_and_several_steps_is_what_numpy_says_of_the_whole() -> None:
    """Layers in no order, weights split over tp, biases replicated, each rank's rows in an order of their own."""
    mesh, steps = Mesh(dp=3, pp=2, tp=2), (10, 20)
    layers = {"z.in": 0, "a.out": 1, "m": 1}  # by pipeline stage
    wholes = {(step, layer): generator.normal(size=(3, 11)) for step in steps for layer in layers}
    parts = []
    for step, layer in generator.permutation(np.array(list(wholes), dtype=object)):
        own = wholes[step, layer]
        mean = own.mean(axis=0)
        for rank in generator.permutation(mesh.world_size).tolist():
            here = mesh.coordinates(rank)
            if here.pp != layers[layer]:
                continue
            mine = own[here.dp]
            for elements, split in ((np.arange(4 * here.tp, 4 * here.tp + 4), "tp"), (np.arange(8, 11), "")):
                dot = {"dot": mine[elements] @ mean[elements], "step": step}
                parts.append(part(rank, "local", split, mine[elements], layer) | dot)
                parts.append(part(rank, "reduced", split, mean[elements], layer) | {"step": step})
    rows = combine(table(parts), mesh)
    expected = sorted(
        (step, scope, layer, rank)
        for step, layer in wholes
        for scope in ("local", "reduced")
        for rank in range(mesh.world_size)
        if mesh.coordinates(rank).pp == layers[layer]
    )
    assert list(rows[["step", "scope", "layer", "rank"]].itertuples(index=False, name=None)) == expected
    for _, row in rows.iterrows():
        own, mean = wholes[row["step"], row["layer"]], wholes[row["step"], row["layer"]].mean(axis=0)
        mine = own[mesh.coordinates(row["rank"]).dp] if row["scope"] == "local" else mean
        check(row, mine)
        assert (row["shards"], row["replicas"]) == (2, 1 if row["scope"] == "local" else 3)
        if row["scope"] == "local":
            assert row["cosine"] == pytest.approx(mine @ mean / np.linalg.norm(mine) / np.linalg.norm(mean))


def test_one_replica_agrees_with_itself() -> None:
    values = generator.normal(size=10)
    rows = combine(table([part(0, "local", "", values), part(0, "reduced", "", values)]), Mesh())
    assert rows.query("scope == 'local'")["cosine"].tolist() == pytest.approx([1.0])


def test_norms_alone_leave_the_rest_unknown() -> None:
    values = generator.normal(size=10)
    only = {"sum": np.nan, "max_abs": np.nan, "zero_count": -1, "underflow_count": -1}
    row = combine(table([part(0, "local", "", values) | only]), Mesh()).query("scope == 'local'").iloc[0]
    assert row["norm"] == pytest.approx(np.linalg.norm(values)) and row["nonfinite_count"] == 0
    assert row[["max_abs", "mean", "zero_fraction", "underflow_fraction"]].isna().all()
    bad = combine(table([part(0, "local", "", values) | only | {"nonfinite_count": -1, "sum_sq": np.inf}]), Mesh())
    assert bad["nonfinite_count"].isna().all()


def test_histograms_of_shards_are_added() -> None:
    def spread(rank: int, first: int, counts: list[int], sharded: str = "tp", scope: str = "reduced") -> dict:
        return {"step": 1, "rank": rank, "layer": "fc", "scope": scope, "sharded": sharded, "first_exponent": first,
                "counts": counts, "zero_count": 0, "nonfinite_count": 0, "underflow_count": 0, 
                "sampled": False}  # fmt: skip

    parts = [spread(0, -3, [1, 2]), spread(1, -2, [5]), spread(1, 4, [7], ""), spread(0, 4, [7], "")]
    columns = {name: [row[name] for row in parts] for name in columns_of("histograms")}
    found = combine_histograms(columns, Mesh(tp=2))
    assert dict(zip(found["exponent"], found["count"], strict=True)) == {-3: 1, -2: 7, 4: 7}
    assert set(found["rank"]) == {0}
    assert combine_histograms({name: [] for name in columns}, Mesh()).empty


def test_weights_of_shards_are_added() -> None:
    def row(rank: int, sharded: str, weight: np.ndarray, update: np.ndarray, moment: float) -> dict:
        return {"step": 1, "rank": rank, "layer": "fc", "sharded": sharded, "numel": weight.size,
                "weight_sq": (weight**2).sum(), "update_sq": (update**2).sum(), "moment1_sq": moment,
                "moment2_sq": np.nan}  # fmt: skip

    weight, update = generator.normal(size=(2, 10))
    parts = [row(0, "dp", weight[:5], update[:5], 9.0), row(1, "dp", weight[5:], update[5:], 16.0)]
    (found,) = combine_weights(
        {name: [part[name] for part in parts] for name in columns_of("weights")}, Mesh(dp=2)
    ).to_dict("records")
    assert found["weight_norm"] == pytest.approx(np.linalg.norm(weight))
    assert found["update_ratio"] == pytest.approx(np.linalg.norm(update) / np.linalg.norm(weight))
    assert found["moment1_norm"] == 5.0 and np.isnan(found["moment2_norm"]) and found["shards"] == 2
