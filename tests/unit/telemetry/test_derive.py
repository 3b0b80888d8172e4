import numpy as np
import pytest

from workbench.core.mesh import Mesh
from workbench.core.records import columns_of
from workbench.telemetry.derive import devices_frame, global_metrics, metrics_frame
from workbench.telemetry.rollbacks import standing
from workbench.telemetry.store import empty


def steps_of(rows: list[dict]) -> dict[str, np.ndarray]:
    defaults = {"time": 0.0, "lr": 0.1, "grad_sq": 0.0, "tokens": 10, "data_wait_ms": 0.0, "skipped": False,
                "loss_scale": 1.0, "clip": 0.0, "framework_norm": np.nan, "monitor_ms": 0.0}  # fmt: skip
    full = [{**defaults, **row} for row in rows]
    return {name: np.array([row[name] for row in full]) for name in columns_of("steps")}


def test_two_replicas() -> None:
    steps = steps_of([
        {"step": 1, "rank": 0, "loss": 2.0, "grad_sq": 9.0, "step_time_ms": 100.0},
        {"step": 1, "rank": 1, "loss": 4.0, "grad_sq": 16.0, "step_time_ms": 200.0},
        {"step": 2, "rank": 0, "loss": 1.0, "grad_sq": 1.0, "step_time_ms": 100.0},
    ])  # fmt: skip
    metrics = global_metrics(steps, Mesh(dp=2))
    assert metrics["step"].tolist() == [1]  # step 2 is not complete
    assert metrics["loss"].tolist() == [3.0]
    assert metrics["grad_norm"].tolist() == [5.0]
    assert metrics["step_time_ms"].tolist() == [200.0]
    assert metrics["tps"].tolist() == [20 / 0.2 / 2]  # 20 tokens, 0.2 s, 2 devices


def test_a_pipelines_loss_is_that_of_its_last_stage_and_tokens_count_once() -> None:
    steps = steps_of([
        {"step": 1, "rank": 0, "loss": np.nan, "step_time_ms": 100.0},
        {"step": 1, "rank": 1, "loss": 5.0, "step_time_ms": 100.0},
    ])  # fmt: skip
    metrics = global_metrics(steps, Mesh(pp=2))
    assert metrics["loss"].tolist() == [5.0]
    assert metrics["tps"].tolist() == [10 / 0.1 / 2]


def test_a_loss_that_is_not_a_number_stays_so() -> None:
    steps = steps_of([
        {"step": 1, "rank": 0, "loss": 1.0, "step_time_ms": 1.0},
        {"step": 1, "rank": 1, "loss": np.nan, "step_time_ms": 1.0},
    ])  # fmt: skip
    assert np.isnan(global_metrics(steps, Mesh(dp=2))["loss"][0])


@pytest.mark.parametrize("per_rank", [False, True])
def test_no_rows(per_rank: bool) -> None:
    frame = metrics_frame(empty("steps"), Mesh(dp=2), per_rank=per_rank)
    assert len(frame) == 0 and "grad_norm" in frame


def test_rows_per_rank() -> None:
    steps = steps_of([
        {"step": 1, "rank": 0, "loss": 2.0, "grad_sq": 9.0, "step_time_ms": 100.0},
        {"step": 1, "rank": 1, "loss": 4.0, "grad_sq": 16.0, "step_time_ms": 200.0},
    ])  # fmt: skip
    frame = metrics_frame(steps, Mesh(dp=2), per_rank=True)
    assert frame["rank"].tolist() == [-1, 0, 1]
    assert frame["loss"].tolist() == [3.0, 2.0, 4.0]
    assert frame["grad_norm"].tolist() == [5.0, 3.0, 4.0]
    assert frame["tps"].tolist() == [50.0, 100.0, 50.0]


def test_norms_before_and_after_clipping_and_the_frameworks_own() -> None:
    rows = [
        {"step": step, "rank": rank, "loss": 1.0, "grad_sq": square, "clip": clip, "framework_norm": own,
         "loss_scale": 8.0, "monitor_ms": float(rank), "step_time_ms": 1.0}
        for step, square, clip, own in ((1, 8.0, 1.0, 3.9), (2, 0.08, 1.0, np.nan), (3, 8.0, 0.0, np.nan))
        for rank in (0, 1)
    ]  # fmt: skip
    metrics = global_metrics(steps_of(rows), Mesh(dp=2))
    assert metrics["grad_norm"] == pytest.approx([4.0, 0.4, 4.0])
    assert metrics["grad_norm_clipped"] == pytest.approx([1.0, 0.4, 4.0])
    assert metrics["framework_norm"] == pytest.approx([3.9, np.nan, np.nan], nan_ok=True)
    assert metrics["loss_scale"].tolist() == [8.0] * 3 and metrics["monitor_ms"].tolist() == [1.0] * 3


def test_steps_after_a_rollback_take_the_place_of_those_before() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        # a rank's steps: ahead, now and then back, in the order it wrote them
        written, step = [], 0
        for _ in range(random.integers(0, 30)):
            step = int(random.integers(0, step + 1)) if step and random.random() < 0.2 else step
            step += 1
            written.append(step)
        ranks = 2
        rows = [(step, rank, index) for index, step in enumerate(written) for rank in range(ranks)]
        steps = {name: np.array([row[i] for row in rows], int) for i, name in enumerate(("step", "rank", "order"))}
        expected: dict[int, int] = {}
        for index, step in enumerate(written):  # as a notebook of paper: going back tears out the pages that follow
            expected = {s: i for s, i in expected.items() if s < step} | {step: index}
        found = standing(steps)
        for rank in range(ranks):
            own = found["rank"] == rank
            assert dict(zip(found["step"][own].tolist(), found["order"][own].tolist(), strict=True)) == expected


def test_fragmentation_is_what_the_allocator_holds_and_has_not_given_out() -> None:
    none = {name: values[:0] for name, values in empty("devices").items()}
    rows = {name: np.full(2, np.nan) for name in none}
    rows |= {"gpu_allocated_bytes": np.array([6.0, np.nan]), "gpu_reserved_bytes": np.array([8.0, np.nan])}
    assert devices_frame(rows)["gpu_fragmentation"].tolist() == pytest.approx([0.25, np.nan], nan_ok=True)
    assert devices_frame(none).empty
