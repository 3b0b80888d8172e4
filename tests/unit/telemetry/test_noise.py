"""Noise scale and similarity from logged sums equal what NumPy says of the gradients themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.telemetry.test_gradients import part, table
from workbench.core.mesh import Mesh
from workbench.core.records import columns_of
from workbench.telemetry.noise import noise_scale, similarity

BATCH, REPLICAS, SIZE = 64, 4, 400


def logged(gradients: np.ndarray, step: int, *, dots: bool = True) -> list[dict]:
    """Rows of one step: ``gradients`` is (replicas, elements), cut into two layers."""
    mean = gradients.mean(axis=0)
    rows = []
    for layer, where in (("a", slice(0, 100)), ("b", slice(100, None))):
        for rank, own in enumerate(gradients):
            row = part(rank, "local", "", own[where], layer)
            rows.append(row | ({"dot": own[where] @ mean[where], "dot_kind": "exact"} if dots else {}))
        rows.append(part(0, "reduced", "", mean[where], layer))
    return [row | {"step": step} for row in rows]


def drawn(steps: int, noise: float = 3.0) -> list[np.ndarray]:
    """Gradients of steps: the true one plus per-sample noise averaged over a replica's samples."""
    random = np.random.default_rng(0)
    true = random.normal(size=SIZE)
    share = BATCH // REPLICAS
    return [
        true + noise * random.normal(size=(REPLICAS, share, SIZE)).mean(axis=1) * np.ones((REPLICAS, 1))
        for _ in range(steps)
    ]


def test_noise_scale_is_the_one_that_the_samples_were_drawn_with():
    steps = drawn(200)
    rows = table([row for number, found in enumerate(steps, 1) for row in logged(found, number)])
    found = noise_scale(rows, Mesh(dp=REPLICAS), BATCH)
    assert found["step"].tolist() == list(range(1, 201)) and set(found["kind"]) == {"exact"}
    true = np.random.default_rng(0).normal(size=SIZE)
    assert found["noise_scale"].iloc[-1] == pytest.approx(9.0 * SIZE / (true @ true), rel=0.03)
    assert found["gradient_sq"].mean() == pytest.approx(true @ true, rel=0.02)
    first, mean = steps[0], steps[0].mean(axis=0)
    small = BATCH / REPLICAS
    local_sq = np.mean(np.sum(first**2, axis=1))
    assert found["noise"].iloc[0] == pytest.approx((local_sq - mean @ mean) / (1 / small - 1 / BATCH))
    expected = (BATCH * (mean @ mean) - small * local_sq) / (BATCH - small)
    assert found["gradient_sq"].iloc[0] == pytest.approx(expected)


def test_its_interval_holds_the_true_value_and_narrows():
    steps = drawn(200)
    rows = table([row for number, found in enumerate(steps, 1) for row in logged(found, number)])
    found = noise_scale(rows, Mesh(dp=REPLICAS), BATCH)
    gradient = np.random.default_rng(0).normal(size=SIZE)
    true = 9.0 * SIZE / (gradient @ gradient)
    assert (found["low"].iloc[0], found["high"].iloc[0]) == (0.0, np.inf), "one step says nothing"
    inside = found.iloc[2:]
    assert ((inside["low"] <= true) & (true <= inside["high"])).mean() > 0.8
    width = (found["high"] - found["low"]).to_numpy()
    assert width[199] < width[50] < width[5]


def test_numerator_and_denominator_are_averaged_apart():
    rows = table([row for number, found in enumerate(drawn(50, noise=30.0), 1) for row in logged(found, number)])
    found = noise_scale(rows, Mesh(dp=REPLICAS), BATCH)
    assert found["noise_scale"].iloc[-1] == pytest.approx(found["noise"].mean() / found["gradient_sq"].mean())
    last = noise_scale(rows, Mesh(dp=REPLICAS), BATCH, window=10).iloc[-1]
    assert last["noise_scale"] == pytest.approx(
        found["noise"].iloc[-10:].mean() / found["gradient_sq"].iloc[-10:].mean()
    )


def test_steps_of_which_only_some_layers_are_logged_do_not_count():
    steps = drawn(3)
    rows = [row for number, found in enumerate(steps, 1) for row in logged(found, number)]
    partial = [row for row in rows if row["step"] != 2 or row["layer"] == "a"]
    assert noise_scale(table(partial), Mesh(dp=REPLICAS), BATCH)["step"].tolist() == [1, 3]


def test_one_replica_has_nothing_to_compare():
    rows = table(logged(drawn(1)[0][:1], 1))
    (row,) = noise_scale(rows, Mesh(), BATCH).to_dict("records")
    assert row["kind"] == "one replica" and np.isnan(row["noise_scale"])
    assert noise_scale(table([]), Mesh(), BATCH).empty


@pytest.mark.parametrize("dots", [True, False])
def test_similarity_of_two(dots):
    gradients = drawn(1)[0][:2]
    found = similarity(table(logged(gradients, 1, dots=dots)), sketches(gradients[:0]), Mesh(dp=2))
    assert found.attrs["kind"] == "exact"
    assert found.to_numpy() == pytest.approx(cosines(gradients))


def test_similarity_of_three_and_of_one_layer():
    gradients = drawn(1)[0][:3]
    rows, none = table(logged(gradients, 1)), sketches(gradients[:0])
    assert similarity(rows, none, Mesh(dp=3)).to_numpy() == pytest.approx(cosines(gradients))
    assert similarity(rows, none, Mesh(dp=3), 1, "b").to_numpy() == pytest.approx(cosines(gradients[:, 100:]))


def test_similarity_of_more_is_estimated_from_sketches():
    gradients = drawn(1)[0]
    found = similarity(table([]), sketches(gradients), Mesh(dp=4))
    assert found.attrs["kind"] == "sampled"
    assert found.to_numpy() == pytest.approx(cosines(gradients)), "of everything, it is exact"
    one = similarity(table([]), sketches(gradients), Mesh(dp=4), layer="a")
    assert one.to_numpy() == pytest.approx(cosines(gradients[:, :100]))


def test_similarity_says_what_it_cannot_know():
    gradients = drawn(1)[0][:2]
    two, none = table(logged(gradients, 1)), sketches(gradients[:0])
    with pytest.raises(ValueError, match="no gradient of a layer 'c'"):
        similarity(two, none, Mesh(dp=2), layer="c")
    with pytest.raises(ValueError, match=r"statistics of step 5: the last ones are of steps \[1\]"):
        similarity(two, none, Mesh(dp=2), 5)


def sketches(gradients: np.ndarray) -> dict[str, list]:
    rows = [
        {"step": 1, "rank": rank, "layer": layer, "sharded": "", "values": list(own[where])}
        for rank, own in enumerate(gradients)
        for layer, where in (("a", slice(0, 100)), ("b", slice(100, None)))
    ]
    return {name: [row[name] for row in rows] for name in columns_of("sketches")}


def cosines(gradients: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1)
    return gradients @ gradients.T / np.outer(norms, norms)
