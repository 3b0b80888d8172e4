"""What figures compute, against closed forms and plain NumPy."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_run import fake_spec, make_fake_run, write_spec
from workbench.core.records import CollectiveRecord, GradientStats, HistogramStats, PhaseRecord, StepRecord, WeightStats
from workbench.plots import (
    bandwidth,
    busy,
    cosine,
    exposed,
    grad_norm,
    histogram,
    lag,
    loss,
    noise,
    phase_bars,
    theme,
    timeline,
    traffic,
    update_ratio,
)
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store
from workbench.telemetry.stragglers import against_others


def opened(path: Path) -> Store:
    store = Store(path)
    store.refresh()
    return store


def stats(
    rank: int, layer: str, scope: str, vector: np.ndarray, reduced: np.ndarray, *, sharded: str = ""
) -> GradientStats:
    return GradientStats(
        step=1,
        rank=rank,
        layer=layer,
        scope=scope,
        sharded=sharded,
        numel=vector.size,
        sum=float(vector.sum()),
        sum_sq=float(vector @ vector),
        max_abs=float(np.abs(vector).max()),
        zero_count=0,
        nonfinite_count=0,
        dot=float(vector @ reduced) if scope == "local" else math.nan,
        dot_kind="exact",
    )


def step(number: int, rank: int, *, ms: float = 100.0) -> StepRecord:
    return StepRecord(
        time=float(number),
        step=number,
        rank=rank,
        loss=1.0,
        lr=0.1,
        grad_sq=4.0,
        tokens=8,
        step_time_ms=ms,
        data_wait_ms=0.1,
        clip=1.5,
    )


def finish(writer: RankLogWriter) -> None:
    writer.event("state", "finished", step=9)


@pytest.mark.parametrize(("tp", "dp"), [(1, 2), (2, 2), (1, 4)])
def test_cosine_is_that_of_the_whole_vectors(tmp_path: Path, tp: int, dp: int) -> None:
    """Layers sharded over tp, one replicated; each replica's whole gradient against the mean."""
    random = np.random.default_rng(3)
    plugin = "hybrid" if tp > 1 else "ddp"
    write_spec(tmp_path, fake_spec(ranks=dp * tp, plugin=plugin, **({"tp": tp} if tp > 1 else {})))
    split = random.normal(size=(dp, tp * 6))
    whole = random.normal(size=(dp, 5))
    for rank in range(dp * tp):
        replica, shard = divmod(rank, tp)
        part = slice(shard * 6, shard * 6 + 6)
        with RankLogWriter(tmp_path, rank) as writer:
            for name, own, mean, sharded in (
                ("split", split[replica, part], split.mean(0)[part], "tp" if tp > 1 else ""),
                ("norm", whole[replica], whole.mean(0), ""),
            ):
                writer.append(stats(rank, name, "local", own, mean, sharded=sharded))
                writer.append(stats(rank, name, "reduced", mean, mean, sharded=sharded))
            finish(writer)
    columns, _ = cosine.columns(opened(tmp_path), None)
    full = np.concatenate([split, whole], axis=1)
    mean = full.mean(0)
    for replica in range(dp):
        expected = full[replica] @ mean / np.linalg.norm(full[replica]) / np.linalg.norm(mean)
        assert columns[f"cosine_{replica * tp}"][0] == pytest.approx(expected, rel=1e-9)
    assert columns["how"].tolist() == ["exact"] and columns["estimated"].tolist() == [0]


@pytest.mark.parametrize(("dp", "how"), [(2, "computed from norms"), (3, "estimated from each rank's slice")])
def test_a_cosine_says_how_it_was_had(tmp_path: Path, dp: int, how: str) -> None:
    """ZeRO-2: of two replicas it follows from norms, of more it is estimated over each rank's own slice, and shown."""
    write_spec(tmp_path, fake_spec(ranks=dp, plugin="zero2"))
    own = np.random.default_rng(4).normal(size=(dp, 60)) + 0.5
    mean = own.mean(0)
    for rank in range(dp):
        place = slice(rank * 60 // dp, (rank + 1) * 60 // dp)
        with RankLogWriter(tmp_path, rank) as writer:
            local = stats(rank, "a", "local", own[rank], mean)
            writer.append(replace(local, dot=math.nan, dot_kind=""))
            writer.append(stats(rank, "a", "reduced", mean[place], mean[place], sharded="dp"))
            sliced = stats(rank, "a", "slice", own[rank][place], mean[place], sharded="dp")
            writer.append(replace(sliced, dot=float(own[rank][place] @ mean[place]), dot_kind="slice"))
            finish(writer)
    columns, _ = cosine.columns(opened(tmp_path), None)
    for rank in range(dp):
        place = slice(None) if dp == 2 else slice(rank * 60 // dp, (rank + 1) * 60 // dp)
        a, b = own[rank][place], mean[place]
        assert columns[f"cosine_{rank}"][0] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert columns["how"].tolist() == [how] and columns["estimated"].tolist() == [float(dp > 2)]


def test_noise_scale_of_a_known_distribution(tmp_path: Path) -> None:
    """|G|^2 and tr(Sigma) are recovered from exact expectations of the two squared norms."""
    ranks, batch, true_sq, trace = 4, 32, 9.0, 160.0
    write_spec(tmp_path, fake_spec(ranks=ranks))
    assert fake_spec(ranks=ranks).batch_size == batch
    small_sq, big_sq = true_sq + trace / (batch / ranks), true_sq + trace / batch
    for rank in range(ranks):
        with RankLogWriter(tmp_path, rank) as writer:
            for scope, value in (("local", small_sq), ("reduced", big_sq)):
                vector = np.array([math.sqrt(value)])
                writer.append(stats(rank, "a", scope, vector, vector))
            finish(writer)
    columns, _ = noise.columns(opened(tmp_path), None)
    assert columns["noise"][0] == pytest.approx(trace / true_sq)
    assert columns["batch"][0] == batch


def test_bandwidth_traffic_and_exposed_share(tmp_path: Path) -> None:
    """nccl-tests: bus bandwidth of an all-reduce over n ranks is 2 (n - 1) / n times bytes over time."""
    write_spec(tmp_path, fake_spec(ranks=2))
    for rank in range(2):
        with RankLogWriter(tmp_path, rank) as writer:
            writer.append(step(1, rank, ms=100.0 + rank))
            sizes = {"all_reduce": 1_000_000, "all_gather": 400_000, "odd": 100_000, "broadcast": 100}
            for kind, size, count in ((kind, 4, count) for kind, count in sizes.items()):
                writer.append(
                    CollectiveRecord(
                        step=1,
                        rank=rank,
                        kind=kind,
                        group="dp",
                        group_size=size,
                        bytes=count,
                        start_ms=0.0,
                        duration_ms=10.0,
                        exposed_ms=5.0 * rank,
                    )
                )
            finish(writer)
    store = opened(tmp_path)
    rates, _ = bandwidth.columns(store, None)
    assert rates["all_reduce"][0] == pytest.approx(2 * 3 / 4 * 1e6 / 10e-3 / 1e9)
    assert rates["all_gather"][0] == pytest.approx(3 / 4 * 4e5 / 10e-3 / 1e9)
    assert rates["other"][0] == pytest.approx(1e5 / 10e-3 / 1e9)
    assert "broadcast" not in rates, "100 bytes say nothing about bandwidth, and would be all that the axis shows"
    sent, _ = traffic.columns(store, None)
    assert {name: values[0] for name, values in sent.items()} == {
        "step": 1, "all_reduce": 1_000_000, "all_gather": 400_000, "broadcast": 100, "other": 100_000
    }  # fmt: skip
    share, _ = exposed.columns(store, None)
    assert (share["lowest"][0], share["highest"][0]) == (0, pytest.approx(100 * 20 / 101))
    assert share["hidden"][0] == pytest.approx(75)


def test_phases_by_rank_lag_and_timeline(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=3))
    work = {0: 20.0, 1: 20.0, 2: 26.0}
    for rank in range(3):
        with RankLogWriter(tmp_path, rank) as writer:
            for number in range(1, 13):
                writer.append(step(number, rank))
                end = work[rank] + 10
                places = (("forward", 0.0, end - 10), ("communication", end - 10, 10.0), ("optimizer", end, 2.0))
                for phase, start, length in places:
                    writer.append(
                        PhaseRecord(
                            step=number, rank=rank, phase=phase, micro_batch=-1, start_ms=start, duration_ms=length
                        )
                    )
            finish(writer)
    store = opened(tmp_path)
    cells, _ = lag.columns(store, None)
    assert dict(zip(cells["label"], cells["colour"], strict=True)) == pytest.approx(
        {"0": -300 / 25, "1": -300 / 25, "2": 600 / 22}
    )
    bars, _ = phase_bars.columns(store, None)
    assert bars["right"].tolist() == pytest.approx([20, 22, 32, 20, 22, 32, 26, 28, 38])
    assert bars["slow"][~np.isnan(bars["slow"])] == pytest.approx([600 / 22]) and bars["rank"][
        ~np.isnan(bars["slow"])
    ].tolist() == [2]
    drawn, _ = timeline.columns(store, None)
    second = drawn["step"] == 11
    assert drawn["start"][second].min() == 38  # the second step begins when the slowest rank has ended the first
    named = {theme.PHASES[name] for name in ("forward", "communication", "optimizer")}
    assert set(drawn["colour"]) == {*named, theme.PHASES[theme.NO_PHASE]}
    gaps = drawn["phase"] == theme.NO_PHASE
    assert set(drawn["lasted"][gaps]) == {"6 ms"} and set(drawn["rank"][gaps]) == {0, 1}
    assert set(drawn["note"][gaps]) == {"the step of the slowest rank goes on"}
    starts = ~np.isnan(drawn["boundary"])
    assert drawn["name"][starts].tolist() == ["step 10", "step 11", "step 12"]
    assert drawn["boundary"][starts].tolist() == [0, 38, 76]
    assert timeline.height(drawn) < 210, "bars are thin"


def test_an_evaluation_does_not_crush_the_steps_beside_it(tmp_path: Path) -> None:
    """Of 14 s beside steps of 30 ms; live, in the report, and where the steps of each rank are added up."""
    write_spec(tmp_path, fake_spec(ranks=2))
    for rank in range(2):
        with RankLogWriter(tmp_path, rank) as writer:
            for number in range(1, 13):
                writer.append(step(number, rank, ms=30.0))
                phases = [("forward", 0.0, 20.0), ("communication", 20.0, 10.0)]
                if number == 11:
                    phases += [("evaluate", 30.0 + 10 * rank, 14_000.0 - 10 * rank), ("checkpoint", 14_030.0, 500.0)]
                for phase, start, length in phases:
                    writer.append(
                        PhaseRecord(
                            step=number, rank=rank, phase=phase, micro_batch=-1, start_ms=start, duration_ms=length
                        )
                    )
            finish(writer)
    store = opened(tmp_path)
    drawn, _ = timeline.columns(store, None)
    longest = 30 * timeline.LONGEST_BETWEEN
    assert drawn["end"].max() == pytest.approx(3 * 30 + longest, abs=1e-3)
    own = drawn["step"] == 12
    assert (drawn["end"] - drawn["start"])[own] == pytest.approx([20, 10, 20, 10]), "nothing else is shorter"
    evaluated = np.flatnonzero(drawn["phase"] == "evaluate")
    assert drawn["lasted"][evaluated].tolist() == ["14 s", "14 s"]
    assert drawn["note"][evaluated[0]] == "drawn shorter than it was"
    assert drawn["inside"][evaluated].tolist() == ["evaluate 14 s", ""]
    assert drawn["inside"][drawn["phase"] == "checkpoint"].tolist() == ["", ""], "there is no room for it"
    only = {name: values[store.table("phases")["step"] == 11] for name, values in store.table("phases").items()}
    assert timeline.bars(only, np.arange(2))["end"].max() == pytest.approx(30 + longest, abs=1e-3)
    bars, _ = phase_bars.columns(store, None)
    assert bars["right"].max() == pytest.approx(30) and "evaluate" not in bars["phase"]


def test_a_short_checkpoint_between_steps_keeps_its_length() -> None:
    nothing = np.array([False, False])
    between = np.array([False, True])
    starts, ends, is_cut = timeline._shortened(
        np.array([0.0, 30.0]), np.array([30.0, 34.0]), between, nothing, longest=10.0
    )
    assert (starts.tolist(), ends.tolist(), is_cut.tolist()) == ([0, 30], [30, 34], [False, False])


def test_bars_of_a_rank_stand_side_by_side(tmp_path: Path) -> None:
    """Of a run under tp, where forward and backward are interrupted, and of a pipeline's stages."""
    for name, plan in (("tp", {"tp": 2}), ("pp", {"pp": 2, "micro_batches": 4})):
        store = opened(make_fake_run(tmp_path / name, ranks=4, plugin="hybrid", steps=8, detail_every=2, **plan))
        drawn, _ = timeline.columns(store, None)
        logged = store.table("phases")
        logged = {n: v[logged["step"] >= np.unique(logged["step"])[-timeline.STEPS]] for n, v in logged.items()}
        whole = drawn["phase"] != theme.NO_PHASE
        assert sorted((drawn["end"] - drawn["start"])[whole]) == pytest.approx(sorted(logged["duration_ms"]))
        drawn = {key: values[whole] for key, values in drawn.items()}
        thin = drawn["height"] < 0.5
        assert set(drawn["phase"][thin]) == {"monitor", "overlapped"} - ({"overlapped"} if name == "pp" else set())
        for rank in range(4):
            bars = np.flatnonzero((drawn["rank"] == rank) & ~thin)
            bars = bars[np.argsort(drawn["start"][bars], kind="stable")]
            for one, following in itertools.pairwise(bars):
                assert drawn["end"][one] <= drawn["start"][following] + 1e-9
            at = drawn["step"][bars] == drawn["step"].max()
            order = drawn["phase"][bars][at].tolist()
            if name == "tp":
                assert order == ["data", "transfer", "forward", "communication", "backward", "communication",
                                 "optimizer", "communication"]  # fmt: skip
            else:
                assert [p for p in order if p == "bubble"] and order[-2:] == ["optimizer", "communication"]


def test_update_ratio_and_histogram_shares(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=2))
    for rank in range(2):
        with RankLogWriter(tmp_path, rank) as writer:
            writer.append(
                WeightStats(
                    step=20,
                    rank=rank,
                    layer="a",
                    sharded="dp",
                    numel=4,
                    weight_sq=4.0 + rank,
                    update_sq=9e-6,
                    moment1_sq=0.0,
                    moment2_sq=0.0,
                )
            )
            for layer, counts in (("a", [1, 0, 3]), ("b", [7])):
                writer.append(
                    HistogramStats(
                        step=20,
                        rank=rank,
                        layer=layer,
                        scope="reduced",
                        sharded="",
                        first_exponent=-8,
                        counts=counts,
                        zero_count=2,
                        nonfinite_count=0,
                        underflow_count=0,
                    )
                )
            finish(writer)
    store = opened(tmp_path)
    ratio, _ = update_ratio.columns(store, None)
    assert ratio["colour"][0] == pytest.approx(math.sqrt(18e-6 / 9.0))
    first, _ = histogram.columns(store, None)
    assert dict(zip(first["exponent"], first["share"], strict=True)) == {-8: 0.25, -6: 0.75}
    other, _ = histogram.columns(store, None, "b")
    assert (list(other["exponent"]), list(other["layer"])) == ([-8], ["b"])


@pytest.mark.parametrize("plot", [loss, grad_norm])
def test_spikes_are_marked_whichever_arrives_first(tmp_path: Path, plot: Any) -> None:
    write_spec(tmp_path, fake_spec(ranks=1))
    with RankLogWriter(tmp_path, 0) as writer:
        writer.event("spike", plot.NAME, {"value": 9.0, "usual": 1.0, "score": 20.0}, step=2)
        writer.event("spike", "other", {"value": 8.0, "usual": 1.0, "score": 20.0}, step=1)
        writer.append(step(1, 0))
        writer.flush()
        store = opened(tmp_path)
        first, cursor = plot.columns(store, None)
        for number in (2, 3):
            writer.append(step(number, 0))
        writer.flush()
        store.refresh()
        second, cursor = plot.columns(store, cursor)
        writer.event("spike", plot.NAME, {"value": 7.0, "usual": 1.0, "score": 20.0}, step=3)
        writer.append(step(4, 0))
        writer.flush()
        store.refresh()
        third, _ = plot.columns(store, cursor)
    assert np.isnan(first["spike"]).all()
    assert np.nan_to_num(second["spike"]).tolist() == [9, 0] and np.nan_to_num(second["spike_at"]).tolist() == [2, 0]
    assert (third["spike"].tolist(), third["spike_at"].tolist()) == ([7], [3])


def test_a_clip_of_zero_is_none(tmp_path: Path) -> None:
    write_spec(tmp_path, fake_spec(ranks=1))
    with RankLogWriter(tmp_path, 0) as writer:
        for number in (1, 2):
            writer.append(step(number, 0))
    columns, _ = grad_norm.columns(opened(tmp_path), None)
    assert columns["norm"].tolist() == [2, 2]
    assert columns["clip"].tolist() == [1.5, 1.5]


def test_ranks_beyond_the_rows_of_a_heat_map_share_them(tmp_path: Path) -> None:
    store = opened(make_fake_run(tmp_path / "run", ranks=140, steps=6, grad_every=0, layers=1, detail_every=2))
    columns, _ = busy.columns(store, None)
    assert set(columns["label"]) == {f"{first}-{first + 1}" for first in range(0, 140, 2)}
    own, _ = timeline.columns(store, None, 75)
    assert 75 in own["rank"] and len(set(own["rank"])) <= timeline.MOST_RANKS
    assert len(own["rank"]) <= 1.2 * timeline.MOST_BARS


def test_a_straggler_in_one_stage_is_not_lost_among_the_others(tmp_path: Path) -> None:
    """Stages have different work by design: a rank is compared with its own stage."""
    store = opened(make_fake_run(tmp_path / "run", ranks=4, plugin="hybrid", pp=2, micro_batches=2, steps=4))
    table = np.array([[10.0], [30.0], [10.0], [36.0]])
    np.testing.assert_allclose(against_others(table, store.mesh)[:, 0], [0, -1 / 6, 0, 1 / 5], atol=1e-12)
