"""Phases of real steps under each plan: they add up, they are where they should be, and watching changes nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from tests.engine.frames import columns
from tests.engine.still_clock import StillClock
from workbench.telemetry.phases import BETWEEN, HIDDEN, WAITING, bubble_share, collectives_frame, in_turn, phases_frame

PP = {"plugin": "hybrid", "pp": 2, "micro_batches": 4}
STAGES = {**PP, "framework": "torch"}
#: how long each forward pass of ``PLANS`` takes, by the clock of the rank, which waits for nothing
WORK_MS = 1000.0
PLANS = [
    {"plugin": "ddp"},
    {"plugin": "ddp", "accumulate": 2},
    {"plugin": "zero1"},
    {"plugin": "hybrid", "tp": 2},
    {"framework": "torch", "plugin": "fsdp"},
    PP,
    STAGES,
]


@pytest.fixture(scope="module")
def run(run_kept):
    """Results of a plan, trained once."""
    known: dict[str, list[dict[str, Any]]] = {}

    def results(options: dict[str, Any]) -> list[dict[str, Any]]:
        key = str(options)
        if key not in known:
            known[key] = run_kept(2, "tests.engine.watched:train", options=options, work_s=WORK_MS / 1e3, still=True)
        return known[key]

    return results


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_the_phases_of_a_step_add_up_to_its_time(run, options) -> None:
    results = run(options)
    frame = phases_frame(columns(results, "phases"))
    steps = columns(results, "steps")
    parts = frame[~frame["phase"].isin([*BETWEEN, *HIDDEN])].groupby(["step", "rank"])["duration_ms"].sum()
    assert len(parts) == len(steps["step"]) == 2 * 6
    sums = np.array([parts[step, rank] for step, rank in zip(steps["step"], steps["rank"], strict=True)])
    missing = steps["step_time_ms"] - sums
    # what is missing is a tick from the step's beginning to its first boundary, one from the last boundary to the
    # recorder's look at the clock, after which it makes its records, as monitor_ms tells, and one to the step's end
    np.testing.assert_allclose(missing, 3 * StillClock.TICK_S * 1e3, atol=1e-6)
    assert (steps["monitor_ms"] > 0).all()


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_every_phase_is_there_and_in_order(run, options) -> None:
    frame = phases_frame(columns(run(options), "phases"))
    one = frame[(frame["step"] == 5) & (frame["rank"] == 0) & (frame["phase"] != "overlapped")]
    first = one.groupby("phase")["start_ms"].min()
    assert {"data", "transfer", "forward", "backward", "communication", "optimizer"} <= set(first.index)
    assert first["data"] < first["transfer"] < first["forward"] < first["backward"] < first["optimizer"]
    assert one[one["phase"] == "forward"]["duration_ms"].sum() >= WORK_MS * max(1, options.get("accumulate", 1))
    assert (one["duration_ms"] >= 0).all()


@pytest.mark.parametrize("options", PLANS, ids=str)
def test_drawn_side_by_side_only_waiting_moves(run, options) -> None:
    rows = columns(run(options), "phases")
    start, _ = in_turn(rows)
    works = ~np.isin(rows["phase"], WAITING)
    np.testing.assert_allclose(start[works], rows["start_ms"][works], atol=1e-6)
    if options == {"plugin": "ddp"}:  # it sends its buffers around in the forward pass, and gradients in the backward
        one = {name: values[(rows["step"] == 5) & (rows["rank"] == 0)] for name, values in rows.items()}
        order = one["phase"][np.argsort(one["start_ms"])].tolist()
        assert [name for name in order if name in ("forward", "backward", "communication", "optimizer")][:4] == [
            "forward", "communication", "backward", "communication"
        ]  # fmt: skip


def test_micro_batches_have_rows_of_their_own(run) -> None:
    for plan in (PP, STAGES, {**PP, "schedule": "interleaved"}):
        frame = phases_frame(columns(run(plan), "phases"))
        for phase in ("forward", "backward"):
            rows = frame[(frame["phase"] == phase) & (frame["step"] == 4)]
            assert rows.groupby("rank")["micro_batch"].apply(list).tolist() == [[0, 1, 2, 3]] * 2
    pieces = phases_frame(columns(run({"plugin": "ddp", "accumulate": 2}), "phases"))
    assert set(pieces[pieces["phase"] == "forward"]["micro_batch"]) == {0, 1}


@pytest.mark.parametrize("options", [PP, STAGES], ids=["colossal", "torch"])
def test_a_pipelines_bubble_has_its_closed_form(run, options) -> None:
    """Forward takes as long as on every other stage, and beside it all else that is done takes next to nothing."""
    frame = phases_frame(columns(run(options), "phases"))
    last = frame[(frame["rank"] == 1) & (frame["step"] > 2) & ~frame["phase"].isin(HIDDEN)]
    bubble = last[last["phase"] == "bubble"].groupby("step")["duration_ms"].sum()
    shares = bubble / last.groupby("step")["duration_ms"].sum()
    np.testing.assert_allclose(shares, bubble_share(2, 4), rtol=0.01)


def test_watching_changes_no_number_and_leaves_nothing_behind(run_kept, run) -> None:
    for options in ({"plugin": "ddp"}, {"plugin": "hybrid", "tp": 2}):
        watched = run(options)
        bare = run_kept(2, "tests.engine.watched:train", options=options, watching=False)
        for with_it, without in zip(watched, bare, strict=True):
            assert [row["loss"] for row in with_it["StepRecord"]] == [row["loss"] for row in without["StepRecord"]]
            assert with_it["changed"] == []
            assert "PhaseRecord" not in without


def test_what_ddp_hides_of_its_reductions_is_what_time_stamps_say(run_kept) -> None:
    """Exposed: from the last bucket's beginning, when all gradients are there, to its end; hidden: what came before."""
    for delay_ms in (40.0, 160.0, 640.0):  # it has to stand out from what else the machine does
        wrong = _differences_from_time_stamps(run_kept, delay_ms)
        right = {name: np.min(np.abs(values)) < delay_ms / 4 for name, values in wrong.items()}
        if all(right.values()):
            break
    assert right == dict.fromkeys(wrong, True), wrong


def _differences_from_time_stamps(run_kept, delay_ms: float) -> dict[str, list[float]]:
    """What is told of each rank and step less what its time stamps say, in ms, where buckets take ``delay_ms``."""
    results = run_kept(2, "tests.engine.watched:train", options={"plugin": "ddp"}, steps=5, buckets_s=delay_ms / 1e3)
    frame = phases_frame(columns(results, "phases")).set_index(["step", "rank", "phase"])["duration_ms"]
    calls = collectives_frame(columns(results, "collectives")).query("kind == 'all_reduce'")
    calls = calls.set_index(["step", "rank"])
    wrong = defaultdict(list)
    for rank, result in enumerate(results):
        for step in (2, 3):  # DDP begins with the second
            begun, done = (np.array(result["times"][step - 1][key]) * 1e3 for key in ("begun", "done"))
            assert len(begun) > 2
            hidden_ms, exposed_ms = max(begun) - min(begun), max(done) - max(begun)
            assert hidden_ms >= 2 * delay_ms and exposed_ms >= delay_ms, "as planted"
            row = calls.loc[step, rank]
            wrong["duration"].append(row["duration_ms"] - hidden_ms - exposed_ms)
            wrong["exposed"].append(row["exposed_ms"] - exposed_ms)
            wrong["overlapped"].append(frame[step, rank, "overlapped"] - hidden_ms)
            wrong["phase"].append(frame[step, rank, "communication"].sum() - exposed_ms)
    return wrong


def test_all_ranks_record_the_same_steps_although_one_has_the_cost(run_kept) -> None:
    """A budget that pays for next to nothing: the interval grows at every step whose phases are recorded."""
    results = run_kept(
        2, "tests.engine.watched:train", model="plain", options={"plugin": "ddp", "budget": 1e-6}, steps=80
    )
    rows = columns(results, "phases")
    steps = [sorted(set(rows["step"][rows["rank"] == rank].tolist())) for rank in (0, 1)]
    assert steps[0] == steps[1] and steps[0][:3] == [1, 2, 3]
    assert len(steps[0]) < 20 and 64 in steps[0]  # and some whose collectives are recorded
