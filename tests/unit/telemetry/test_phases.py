"""Frames of phases and collectives, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.records import columns_of
from workbench.telemetry.phases import (
    bubble_share,
    bus_factor,
    by_phase,
    collectives_frame,
    own_time,
    phases_frame,
    posting_time,
    skew_ms,
)
from workbench.telemetry.store import Columns, empty


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


def test_nothing_is_no_rows() -> None:
    assert phases_frame(empty("phases")).empty and by_phase(empty("phases")).empty
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
