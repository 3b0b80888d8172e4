"""What limits a run, from phases made up by hand: what is said follows from the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from IPython.lib.pretty import pretty

from tests.unit.telemetry.test_phases import phase, table
from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.telemetry.phases import posting_time
from workbench.telemetry.store import empty
from workbench.telemetry.verdict import verdict


def run_of(*ranks: dict[str, float], steps: int = 20, first_slow: bool = True) -> Columns:
    """Every step the same, each rank with these phases; the first step takes ten times as long. An optimizer that
    takes next to no time ends each step."""
    rows = []
    for step in range(1, steps + 1):
        for rank, phases in enumerate(ranks):
            start = 0.0
            for name, duration in (phases | {"optimizer": phases.get("optimizer", 1e-6)}).items():
                spent = duration * 10 if first_slow and step == 1 else duration
                rows.append(phase(rank, name, start, spent, step=step))
                start += spent
    return table("phases", rows)


def test_a_run_that_computes() -> None:
    rank = {"data": 1.0, "forward": 30.0, "backward": 60.0, "communication": 6.0, "optimizer": 3.0}
    found = verdict(run_of(rank, rank), Mesh(dp=2))
    assert (found.bound, found.straggler) == ("compute", None)
    assert found.step_ms == pytest.approx(100), "the first steps are left out"
    assert found.compute_share == pytest.approx(0.93) and found.communication_share == pytest.approx(0.06)
    assert found.steps == (4, 20)
    assert str(found) == (
        "Compute-bound: 93% of a 100 ms step computes; 6% communicates, 1% waits for data. "
        "No rank stands out: they differ by 0 ms per step. (Steps 4 to 20.)"
    )
    assert pretty(found) == str(found), "a notebook shows the sentence"


@pytest.mark.parametrize(
    ("name", "bound"), [("data", "data"), ("transfer", "data"), ("communication", "communication")]
)
def test_a_run_that_waits(name: str, bound: str) -> None:
    rank = {"forward": 10.0, name: 30.0}
    found = verdict(run_of(rank, rank), Mesh(dp=2))
    assert found.bound == bound and "75%" in found.sentence
    assert ("holds up all alike" in found.sentence) == (bound == "communication"), "what cannot be told is said"


def test_a_pipeline_that_waits_for_its_stages() -> None:
    found = verdict(run_of({"forward": 10.0, "bubble": 30.0}, {"forward": 10.0, "bubble": 30.0}), Mesh(pp=2))
    assert found.bound == "bubble" and found.bubble_share == pytest.approx(0.75)
    assert found.sentence.startswith("Bound by the pipeline")


def test_the_rank_that_the_others_wait_for_is_the_one_that_waits_least() -> None:
    fast = {"data": 1.0, "forward": 20.0, "backward": 40.0, "communication": 39.0}
    slow = {"data": 1.0, "forward": 55.0, "backward": 42.0, "communication": 2.0}
    found = verdict(run_of(fast, fast, slow, fast), Mesh(dp=4))
    assert found.straggler is not None
    assert (found.straggler.rank, found.straggler.phase) == (2, "forward")
    assert found.straggler.lost_ms == pytest.approx(37) and found.straggler.lost_share == pytest.approx(0.37)
    assert found.bound == "compute", "the others communicate only because they wait"
    assert found.waiting_share == pytest.approx((39 * 3 + 2) / 4 / 100 - 0.02)
    assert (
        "Rank 2 is slow in forward: 37 ms per step, 37% of the step time, is lost to it (p < 0.01)." in found.sentence
    )


def posts(step: int, rank: int, post_ms: float, *, start_ms: float = 1.0, kind: str = "all_reduce") -> dict:
    return {"step": step, "rank": rank, "kind": kind, "group": "dp", "group_size": 2, "bytes": 4, "start_ms": start_ms,
            "post_ms": post_ms}  # fmt: skip


@pytest.mark.parametrize("steps", [20, 900])
def test_a_slow_network_shows_in_handing_over(steps: int) -> None:
    """Also when the last recorded step lies long before the steps that are judged."""
    rank = {"forward": 10.0, "communication": 40.0}
    posted = posting_time(table("collectives", [posts(at, r, 30.0 * r + 0.1) for at in (10, 20) for r in (0, 1)]))
    found = verdict(run_of(rank, rank, steps=steps), Mesh(dp=2), posted)
    assert found.straggler is not None
    assert (found.straggler.rank, found.straggler.phase) == (1, "communication")
    assert found.straggler.lost_ms == pytest.approx(30) and found.straggler.lost_share == pytest.approx(0.6)
    assert found.sentence == (
        "Communication-bound: 80% of a 50 ms step communicates on rank 1, for which the others wait; 20% computes. "
        "Rank 1 is slow in its network: 30 ms per step, 60% of the step time, is lost to it (p < 0.01). "
        f"(Steps {max(4, steps - 49)} to {steps}.)"
    )


def test_one_recorded_step_and_the_one_that_connects_name_nobody() -> None:
    rank = {"forward": 10.0, "communication": 40.0}
    posted = posting_time(table("collectives", [posts(at, r, 30.0 * r + 0.1) for at in (1, 10) for r in (0, 1)]))
    assert verdict(run_of(rank, rank), Mesh(dp=2), posted).straggler is None


def test_a_stage_that_hands_over_slowly_loses_no_more_than_it_waits() -> None:
    """Recorded steps may have been slower than those that are judged; and the handing over is no bubble."""
    rank = {"forward": 20.0, "communication": 10.0, "bubble": 70.0}
    posted = posting_time(table("collectives", [posts(at, r, 300.0 * r + 0.1) for at in (10, 20) for r in (0, 1)]))
    found = verdict(run_of(rank, rank), Mesh(pp=2), posted)
    assert found.straggler is not None
    assert found.straggler.lost_ms == pytest.approx(80) and found.straggler.lost_share == pytest.approx(0.8)
    assert found.bound == "communication" and "80% of a 100 ms step communicates on rank 1" in found.sentence


def test_shares_are_of_the_step_of_the_rank_that_is_judged() -> None:
    """Ranks whose steps differ in length, as where one waits outside of its steps."""
    found = verdict(run_of({"forward": 10.0}, {"forward": 100.0}), Mesh(dp=2))
    assert found.straggler is not None and found.straggler.lost_share == pytest.approx(0.9)
    assert "100% of a 55 ms step computes on rank 1" in found.sentence


@pytest.mark.parametrize("steps", [1, 7])
def test_few_steps_are_no_verdict_and_that_is_said(steps: int) -> None:
    found = verdict(run_of({"forward": 10.0}, {"forward": 30.0}, steps=steps), Mesh(dp=2))
    assert (found.bound, found.straggler) == ("", None)
    assert found.sentence == f"Verdict after 8 measured steps ({steps} so far)."


def test_a_step_in_which_the_run_failed_does_not_count() -> None:
    """Rank 1 waits for rank 0, which has failed, until its collective gives up; neither came to the optimizer."""
    rank = {"forward": 10.0, "communication": 5.0}
    whole = run_of(rank, rank, steps=10)
    last = table("phases", [phase(0, "forward", 0, 3, step=11), phase(1, "communication", 9, 30_000, step=11)])
    rows = {name: np.concatenate([whole[name], last[name]]) for name in whole}
    found = verdict(rows, Mesh(dp=2))
    assert found.steps == (4, 10) and found.step_ms == pytest.approx(15, abs=1e-3) and found.bound == "compute"


def test_one_hiccup_makes_no_straggler() -> None:
    rank = {"forward": 10.0, "communication": 2.0}
    rows = run_of(rank, rank, steps=40)
    late = (rows["step"] == 30) & (rows["rank"] == 1) & (rows["phase"] == "forward")
    rows["duration_ms"] = np.where(late, 500.0, rows["duration_ms"])
    assert verdict(rows, Mesh(dp=2)).straggler is None


def test_a_stage_with_more_work_is_named_as_such() -> None:
    found = verdict(run_of({"forward": 10.0, "bubble": 10.0}, {"forward": 18.0, "bubble": 2.0}), Mesh(pp=2))
    assert "It is pipeline stage 1 of 2, which may have more work." in found.sentence


def test_hidden_communication_is_told_apart() -> None:
    rank = {"forward": 10.0, "overlapped": 4.0, "communication": 2.0}
    found = verdict(run_of(rank, rank), Mesh(dp=2))
    assert found.step_ms == pytest.approx(12, abs=1e-3) and found.overlapped_share == pytest.approx(4 / 12)


def test_only_the_newest_complete_steps_count() -> None:
    slow, fast = {"forward": 90.0}, {"forward": 10.0}
    rows = run_of(slow, slow, steps=10)
    later = run_of(fast, fast, steps=30, first_slow=False)
    keep = later["step"] > 10
    joined = {name: np.concatenate([rows[name], later[name][keep]]) for name in rows}
    joined = {name: values[:-1] for name, values in joined.items()}  # the last step lacks a rank
    found = verdict(joined, Mesh(dp=2), window=15)
    assert found.steps == (15, 29) and found.step_ms == pytest.approx(10)


def test_the_window_is_the_newest_measured_steps_and_is_said() -> None:
    rows = run_of({"forward": 10.0}, {"forward": 10.0}, steps=400)
    every_fourth = {name: values[rows["step"] % 4 == 0] for name, values in rows.items()}
    found = verdict(every_fourth, Mesh(dp=2))
    assert found.window == "50 measured steps of 204 to 400"
    assert found.sentence.endswith("(50 measured steps of 204 to 400.)")


def test_before_the_first_step_nothing_is_said() -> None:
    assert str(verdict(empty("phases"), Mesh(dp=2))) == "Verdict after 8 measured steps (0 so far)."


def test_a_single_rank_has_no_others() -> None:
    found = verdict(run_of({"forward": 10.0}), Mesh())
    assert (
        found.straggler is None and found.sentence == "Compute-bound: 100% of a 10 ms step computes. (Steps 4 to 20.)"
    )
