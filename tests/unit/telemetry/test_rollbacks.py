"""Rows that a rollback took back are not read, whatever of the log is on disk when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workbench.core.records import CollectiveRecord, PhaseRecord, StepRecord
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store

RANKS = 2


def step_record(step: int, rank: int, number: float) -> StepRecord:
    return StepRecord(
        time=number, step=step, rank=rank, loss=number, lr=0.1, grad_sq=1.0, tokens=8, step_time_ms=1.0,
        data_wait_ms=0.0,
    )  # fmt: skip


def collective(step: int, rank: int, number: float) -> CollectiveRecord:
    return CollectiveRecord(
        step=step, rank=rank, kind="all_reduce", group="dp", group_size=2, bytes=4, start_ms=number, duration_ms=1.0,
        exposed_ms=0.0,
    )  # fmt: skip


def phase(step: int, rank: int, number: float) -> PhaseRecord:
    return PhaseRecord(step=step, rank=rank, phase="forward", micro_batch=-1, start_ms=number, duration_ms=1.0)


@pytest.mark.parametrize("seed", range(12))
def test_what_was_taken_back_is_not_read(tmp_path: Path, seed: int) -> None:
    """Against a notebook of paper: going back tears out the pages that follow. One table has a row per step, one three
    in each third step, one a row in each seventh; ranks are flushed, and the store refreshed, at random moments."""
    random = np.random.default_rng(seed)
    logs = [RankLogWriter(tmp_path, rank, flush_s=60) for rank in range(RANKS)]
    store = Store(tmp_path)
    paper: dict[str, dict[int, list[tuple[int, float]]]] = {
        table: {rank: [] for rank in range(RANKS)} for table in ("steps", "collectives", "phases")
    }
    step, number = 0, 0.0
    for _ in range(80):
        if step and random.random() < 0.12:
            step = int(random.integers(max(0, step - 9), step))
            for rank, log in enumerate(logs):
                log.event("checkpoint", "restored", {"path": "x", "rows": log.taken()}, step=step)
                for pages in paper.values():
                    pages[rank] = [page for page in pages[rank] if page[0] <= step]
        step += 1
        for rank, log in enumerate(logs):
            made = [("steps", step_record)]
            made += [("collectives", collective)] * 3 if step % 3 == 0 else []
            made += [("phases", phase)] if step % 7 == 0 else []
            for table, record in made:
                number += 1.0
                log.append(record(step, rank, number))
                paper[table][rank].append((step, number))
            if random.random() < 0.3:
                log.flush()
        if random.random() < 0.3:
            store.refresh()
    for log in logs:
        log.close()
    late = Store(tmp_path)
    for read in (store, late):
        read.refresh()
        for table, column in (("steps", "loss"), ("collectives", "start_ms"), ("phases", "start_ms")):
            rows = read.table(table)
            for rank in range(RANKS):
                own = rows["rank"] == rank
                found = list(zip(rows["step"][own].tolist(), rows[column][own].tolist(), strict=True))
                assert found == paper[table][rank], (table, rank)


def test_a_log_that_says_something_else_takes_nothing_back(tmp_path: Path) -> None:
    with RankLogWriter(tmp_path, 0) as log:
        log.append(step_record(5, 0, 1.0))
        for value in ("path", None, {"rows": 3}, {"rows": {"steps": "many"}}, {"rows": {}}, {"rows": {"devices": 9}}):
            log.event("checkpoint", "restored", value, step=1)
    store = Store(tmp_path)
    store.refresh()
    assert store.table("steps")["step"].tolist() == [5]
