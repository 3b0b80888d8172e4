"""A run directory of two ranks whose numbers are steady but for the faults that a test plants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fake_run import write_spec
from workbench.core.config import MonitorSpec, ParallelPlan, TrainSpec
from workbench.core.records import AttentionStats, DeviceSample, GradientStats, StepRecord, WeightStats
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.spikes import SpikeFinder

LAYERS = ("embed", "block.0", "block.1", "head")
MIB = 2**20


class Faulty:
    """A run of two ranks; ``change(step, rank, name, value)`` alters its numbers."""

    def __init__(self, path: Path, change: Callable[[int, int, str, float], float] = lambda *given: given[3]) -> None:
        path.mkdir()
        write_spec(path, TrainSpec(plan=ParallelPlan(ranks=2), steps=400, monitor=MonitorSpec(grad_every=1)))
        self.path = path
        self.logs = [RankLogWriter(path, rank, flush_s=60) for rank in range(2)]
        self._change = change
        self._random = np.random.default_rng(7)
        self._spikes = SpikeFinder()
        parts = {"layout": 0, "parts": [[layer, "", 10] for layer in LAYERS]}
        for log in self.logs:
            log.event("layers", "norms", parts, step=1)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            shared = self._random.normal(0, 0.02)
            losses = [self._step(rank, step, shared) for rank in range(2)]
            for spike in self._spikes.look(step, loss=float(np.mean(losses)), grad_norm=1.0):
                value = {"value": spike.value, "usual": spike.usual, "score": spike.score}
                self.logs[0].event("spike", spike.name, value, step=step)
        for log in self.logs:
            log.flush()

    def _step(self, rank: int, step: int, shared: float) -> float:
        def get(name: str, value: float) -> float:
            return self._change(step, rank, name, value)

        loss = get("loss", 2.0 + shared + self._random.normal(0, 0.01))
        log = self.logs[rank]
        log.append(
            StepRecord(
                time=1000.0 + step, step=step, rank=rank, loss=loss, lr=1e-3, tokens=8, step_time_ms=100.0,
                grad_sq=0.5 * get("grad_norm", 1.0 + self._random.normal(0, 0.02)) ** 2,
                data_wait_ms=get("data_wait_ms", 1.0), loss_scale=get("loss_scale", 65536.0),
            )
        )  # fmt: skip
        for layer in LAYERS:
            for scope in ("local", "reduced"):
                noise = abs(1 + (self._random.normal(0, 0.03) if scope == "local" else 0.0))
                norm = get(f"{scope} {layer}", noise)
                log.append(
                    GradientStats(
                        step=step, rank=rank, layer=layer, scope=scope, sharded="", numel=10, sum=0.0, sum_sq=norm**2,
                        max_abs=norm, zero_count=10 if norm == 0 else 0, nonfinite_count=0,
                    )
                )  # fmt: skip
            ratio = get(f"ratio {layer}", 1e-3)
            log.append(
                WeightStats(
                    step=step, rank=rank, layer=layer, sharded="", numel=10, weight_sq=1.0, update_sq=ratio**2,
                    moment1_sq=0.0, moment2_sq=0.0,
                )
            )  # fmt: skip
        for layer in LAYERS[1:3]:
            log.append(
                AttentionStats(
                    step=step, rank=rank, layer=layer, micro_batch=0, sharded="", queries=16, entropy_sum=8.0,
                    uniform_sum=16.0, max_logit=get(f"max_logit {layer}", 6.0),
                )
            )  # fmt: skip
        log.append(
            DeviceSample(
                time=1000.0 + step, rank=rank, step=step, phase="forward", cpu_percent=0.0, threads=1, net_sent_bytes=0,
                net_received_bytes=0, disk_read_bytes=0, disk_write_bytes=0, device="cpu",
                rss_bytes=int(get("rss_bytes", 1000 * MIB)),
            )
        )  # fmt: skip
        return loss


def alter(name: str, steps: range, new: Callable[[float], float], rank: int | None = None) -> Any:
    def change(step: int, at: int, what: str, value: float) -> float:
        return new(value) if what == name and step in steps and rank in (None, at) else value

    return change
