"""A run directory with every table in it, and names as hostile as they come."""

from __future__ import annotations

import math
from pathlib import Path

import tomli_w

from workbench.core.config import SPEC_FILE, ParallelPlan, TrainSpec
from workbench.core.records import (
    CollectiveRecord,
    DeviceSample,
    GradientStats,
    HistogramStats,
    PhaseRecord,
    StepRecord,
    WeightStats,
)
from workbench.rundir.log import RankLogWriter

HOSTILE = "</script><b>'\"&,\n../../x\u2028\N{GRINNING FACE}"
SAMPLE = 'def f():\n    return "</script>, \N{GRINNING FACE}"\n' + "x" * 10_000
#: of layer "split", whose two shards hold half of the squares each: gradient, weight, update
NORMS = [4.0, 2.0, 0.5]
STEPS, STEP_S, BEGAN = 4, 0.1, 1_700_000_000.0
PHASES = (
    ("data", 0.0, 10.0), ("forward", 10.0, 25.0), ("communication", 15.0, 5.0), ("backward", 40.0, 50.0),
    ("overlapped", 60.0, 25.0),
)  # fmt: skip


def steps_of(rank: int, step: int) -> StepRecord:
    """Losses 1/step; NaN at step 3."""
    return StepRecord(
        time=BEGAN + step * STEP_S,
        step=step,
        rank=rank,
        loss=math.nan if step == 3 else 1 / step,
        lr=0.1,
        grad_sq=2.0,
        tokens=400,
        step_time_ms=1e3 * STEP_S,
        data_wait_ms=1.0,
    )


def write_rank(path: Path, rank: int) -> None:
    """Everything that a rank of tp 2 logs; layer "split" is sharded, layer HOSTILE replicated."""
    with RankLogWriter(path, rank) as log:
        log.event("state", "running")
        for step in range(1, STEPS + 1):
            log.append(steps_of(rank, step))
            for phase, start, ms in PHASES:
                log.append(
                    PhaseRecord(step=step, rank=rank, phase=phase, micro_batch=-1, start_ms=start, duration_ms=ms)
                )
            for start in (41.0, 43.0):  # two that overlap
                log.append(
                    CollectiveRecord(
                        step=step, rank=rank, kind="all_reduce", group="tp", group_size=2,
                        bytes=4096, start_ms=start, duration_ms=5.0, exposed_ms=1.0,
                    )
                )  # fmt: skip
            for layer, sharded in (("split", "tp"), (HOSTILE, "")):
                log.append(
                    GradientStats(
                        step=step, rank=rank, layer=layer, scope="reduced", sharded=sharded, numel=10,
                        sum=1.0, sum_sq=8.0, max_abs=2.0, zero_count=1, nonfinite_count=0,
                    )
                )  # fmt: skip
                log.append(
                    HistogramStats(
                        step=step, rank=rank, layer=layer, scope="reduced", sharded=sharded,
                        first_exponent=-2 - rank, counts=[1, 3, 5], zero_count=1, nonfinite_count=0, underflow_count=0,
                    )
                )  # fmt: skip
            log.append(
                WeightStats(
                    step=step, rank=rank, layer="split", sharded="tp", numel=10,
                    weight_sq=2.0, update_sq=0.125, moment1_sq=math.nan, moment2_sq=math.nan,
                )
            )  # fmt: skip
            log.append(
                DeviceSample(
                    time=BEGAN + step * STEP_S, rank=rank, step=step, phase="forward", cpu_percent=90.0 + rank,
                    rss_bytes=2**30, threads=3, net_sent_bytes=0, net_received_bytes=0, disk_read_bytes=0,
                    disk_write_bytes=0, device="cpu",
                )
            )  # fmt: skip
        if rank == 0:
            log.event("validation", "loss", 0.5, step=2)
            log.event("validation", "confusion_matrix", [[1, 0], [0, 1]], step=2)
            log.event("sample", "text", SAMPLE, step=2)
        log.event("state", "finished", step=STEPS)


def make_rich_run(path: Path) -> Path:
    """Write such a run directory at ``path``."""
    path.mkdir()
    plan = ParallelPlan(ranks=2, plugin="hybrid", tp=2)
    spec = TrainSpec(name="rich", steps=STEPS, plan=plan)
    (path / SPEC_FILE).write_text(tomli_w.dumps(spec.to_toml()))
    (path / "cell.py").write_text(f"model = 1  # {HOSTILE!r}\n")
    for rank in range(2):
        write_rank(path, rank)
    return path
