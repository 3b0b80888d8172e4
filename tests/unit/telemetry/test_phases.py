"""Frames of phases and collectives, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.core.columns import Columns
from workbench.core.records import columns_of
from workbench.telemetry.phases import (
    bubble_share,
    bus_factor,
    by_phase,
    collectives_frame,
    in_turn,
    own_time,
    phases_frame,
    posting_time,
    skew_ms,
)
from workbench.telemetry.store import empty


def table(name: str, rows: list[dict]) -> Columns:
    kinds = columns_of(name)
    return {
        column: np.array([row.get(column, np.nan) for row in rows], dtype=object if kind == "U" else kind)
        for column, kind in kinds.items()
    }


def phase(rank: int, name: str, start: float, duration: float, *, micro_batch: int = -1, step: int = 1) -> dict:
    return {"step": step, "rank": rank, "phase": name, "micro_batch": micro_batch, "start_ms": start,
            "duration_ms": duration}  # fmt: skip


def test_rows_are_ordered_and_micro_batches_added_up() -> None:
    first, second = phase(0, "forward", 2, 3, micro_batch=0), phase(0, "forward", 9, 4, micro_batch=1)
    others = [phase(0, "data", 0, 2), phase(0, "overlapped", 3, 5), phase(0, "evaluate", 20, 50)]
    rows = table("phases", [phase(1, "forward", 2, 3), first, second, *others])
    assert phases_frame(rows)["start_ms"].tolist() == [0, 2, 3, 9, 20, 2]
    sums = by_phase(rows)
    assert sums.loc[(1, 0), ["data", "forward", "bubble"]].tolist() == [2, 7, 0]
    assert sums.loc[1, 0].sum() == 9, "neither what is hidden nor what is between the steps"


def test_waiting_within_a_phase_comes_after_its_work() -> None:
    rows = table("phases", [
        phase(0, "monitor", 0, 1), phase(0, "data", 0.5, 2), phase(0, "forward", 2.5, 6),
        phase(0, "communication", 4, 3), phase(0, "backward", 11.5, 8), phase(0, "communication", 13, 4),
        phase(0, "evaluate", 30, 5), phase(0, "overlapped", 5, 7),
        phase(1, "forward", 1, 4), phase(1, "forward", 1, 4, step=2),
    ])  # fmt: skip
    start, end = in_turn(rows)
    assert start.tolist() == [0, 0.5, 2.5, 8.5, 11.5, 19.5, 30, 5, 1, 1]
    assert end.tolist() == [1, 2.5, 8.5, 11.5, 19.5, 23.5, 35, 12, 5, 5]


@given(st.lists(st.tuples(
    st.integers(1, 3), st.integers(0, 2), st.sampled_from(["forward", "communication", "bubble", "monitor"]),
    st.floats(0, 100), st.floats(0, 20),
), max_size=40))  # fmt: skip
def test_no_two_rows_of_a_step_and_rank_overlap(drawn: list[tuple[int, int, str, float, float]]) -> None:
    rows = table("phases", [phase(rank, name, start, ms, step=step) for step, rank, name, start, ms in drawn])
    start, end = in_turn(rows)
    expected = {}
    reached: dict[tuple[int, int], float] = {}
    for i in sorted(range(len(drawn)), key=lambda i: drawn[i][3]):
        step, rank, name, begin, ms = drawn[i]
        if name != "monitor":
            begin = max(begin, reached.get((step, rank), begin))
            reached[step, rank] = begin + ms
        expected[i] = begin
    np.testing.assert_allclose(start, [expected[i] for i in range(len(drawn))], atol=1e-9)
    np.testing.assert_allclose(end - start, rows["duration_ms"], atol=1e-9)


def test_nothing_is_no_rows() -> None:
    assert phases_frame(empty("phases")).empty and by_phase(empty("phases")).empty
    assert [column.size for column in in_turn(empty("phases"))] == [0, 0]
    assert list(collectives_frame(empty("collectives")))[-1] == "bus_gb_per_s"


def test_bandwidths_are_those_of_nccl_tests() -> None:
    """From the manual's formulas: all-reduce on n ranks moves 2 (n - 1) / n of its bytes over the slowest link."""
    base = {"step": 1, "rank": 0, "group": "dp", "bytes": 8_000_000, "start_ms": 0.0, "duration_ms": 4.0}
    rows = [{**base, "kind": kind, "group_size": 4} for kind in ("all_reduce", "all_gather", "broadcast", "barrier")]
    frame = collectives_frame(table("collectives", rows))
    assert frame["algorithm_gb_per_s"].tolist() == [2.0] * 4
    assert frame["bus_gb_per_s"].tolist()[:3] == [3.0, 1.5, 2.0]
    assert np.isnan(frame["bus_gb_per_s"][3])
    assert bus_factor("send", 2) == 1.0


@pytest.mark.parametrize(("stages", "micro_batches", "share"), [(1, 8, 0.0), (2, 2, 1 / 3), (4, 12, 0.2)])
def test_the_bubble_of_a_balanced_pipeline(stages: int, micro_batches: int, share: float) -> None:
    assert bubble_share(stages, micro_batches) == pytest.approx(share)


def test_own_time_is_what_is_no_waiting() -> None:
    rows = table("phases", [phase(0, "forward", 0, 10), phase(0, "communication", 10, 5), phase(0, "monitor", 15, 1),
                            phase(1, "forward", 0, 14), phase(1, "communication", 14, 1)])  # fmt: skip
    together = {"kind": "recv", "start_ms": 3.0, "post_ms": 0.25}  # begun after the send, handed over with it
    first, later = {"start_ms": 1.0, "post_ms": 0.5}, {"start_ms": 2.75, "post_ms": 0.5}
    posts = [
        *({"rank": 0, **call} for call in (first, later, together)),
        *({"rank": 1, **call} for call in ({"start_ms": 1.0, "post_ms": 3.0}, {"start_ms": 9.0})),
    ]
    base = {"step": 1, "kind": "send", "group": "dp", "group_size": 2, "bytes": 4}
    posted = table("collectives", [base | row for row in posts])
    own = own_time(by_phase(rows))
    assert posting_time(posted).tolist() == [1.0, 3.0]
    assert own.sum(axis=1).tolist() == [10, 14]
    assert skew_ms(own).tolist() == [4]
