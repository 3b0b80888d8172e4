"""A believable run directory without any training: for tests of plots, the panel and the report.

``make_fake_run`` writes a whole run at once; ``LiveFakeRun`` appends to one over time from a thread, and has the three
things that the panel asks of a run: ``path``, ``status`` and ``stop()``.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from workbench.config import SPEC_FILE, MonitorSpec, ParallelPlan, TrainSpec
from workbench.mesh import Mesh
from workbench.rank_log import RankLogWriter
from workbench.records import DeviceSample, GradientStats, StepRecord

STEP_S = 0.12
SAMPLE_EVERY_S = 0.5
MIB = 2**20
SAMPLES = (
    "def __init__(self, se the thelf):\n    return ste selfr",
    "def read(self, name):\n    if not self._name:\n        raise ValueError('no name')\n    return self.name",
    "class Reader:\n    def __init__(self, path, mode='r'):\n        self.path = path\n        self._file = None\n",
)
LAYER_PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "input_layernorm")


def fake_spec(*, ranks: int = 2, steps: int = 200, plugin: str = "ddp", grad_every: int = 20, **plan: int) -> TrainSpec:
    """The spec of a fake run; ``plan``: tp, pp, micro_batches (default: pp)."""
    plan = {"micro_batches": plan.get("pp", 1), **plan}
    return TrainSpec(
        recipe="stdlib-llama",
        size="tiny",
        name="fake",
        plan=ParallelPlan(ranks=ranks, plugin=plugin, **plan),
        steps=steps,
        batch_size=8 * ranks,
        lr=3e-3,
        monitor=MonitorSpec(grad_every=grad_every),
    )


def layer_names(layers: int) -> list[str]:
    """Qualified names in model order, as in a Llama of ``layers`` blocks."""
    blocks = [f"model.layers.{block}.{part}" for block in range(layers) for part in LAYER_PARTS]
    return ["model.embed_tokens", *blocks, "model.norm", "lm_head"]


def write_spec(directory: Path, spec: TrainSpec) -> None:
    """``spec.toml`` with versions and machine, as a run has it."""
    extra = {
        "versions": {"python": "3.11.9", "torch": "2.13.0", "colossalai": "0.5.0", "dist-workbench": "0.1.0"},
        "machine": {"host": "localhost", "cpus": 2, "gpus": 0, "memory_bytes": 8 * 2**30},
    }
    (directory / SPEC_FILE).write_text(tomli_w.dumps(spec.to_toml() | extra), encoding="utf-8")


class _Rank:
    """Draws the records of one rank; the same seed gives the same run."""

    def __init__(self, rank: int, spec: TrainSpec, names: list[str], writer: RankLogWriter) -> None:
        self.rank, self.spec, self.writer = rank, spec, writer
        self.mesh: Mesh = spec.plan.mesh
        self.here = self.mesh.coordinates(rank)
        per_stage = math.ceil(len(names) / self.mesh.pp)
        self.first_layer = self.here.pp * per_stage
        self.names = names[self.first_layer : self.first_layer + per_stage]
        self.random = np.random.default_rng(spec.seed + rank)

    def step(self, step: int, when: float, step_s: float = STEP_S) -> None:
        """One step record, and gradients when they are due."""
        noise = float(self.random.normal(0, 0.06))
        loss = 1.35 + 4.2 * math.exp(-step / (0.22 * self.spec.steps)) + noise
        warm = min(1.0, step / 20)
        slow = 0.05 * self.rank / self.mesh.world_size + abs(float(self.random.normal(0, 0.04)))
        self.writer.append(
            StepRecord(
                time=when,
                step=step,
                rank=self.rank,
                loss=loss if self.here.pp == self.mesh.pp - 1 else math.nan,
                lr=self.spec.lr * warm,
                grad_sq=(0.4 + 2.0 * math.exp(-step / 50)) ** 2 / self.mesh.world_size,
                tokens=self.spec.batch_size // self.mesh.dp * 128,
                step_time_ms=step_s * 1e3 * (1 + slow),
                data_wait_ms=0.4 + abs(float(self.random.normal(0, 0.2))),
            )
        )
        every = self.spec.monitor.grad_every
        if every and step % every == 0:
            self._gradients(step)

    def _gradients(self, step: int) -> None:
        for index, name in enumerate(self.names):
            depth = (self.first_layer + index) / 40
            norm = 10 ** (-1.6 + 1.3 * math.cos(3 * depth) - 0.9 * step / self.spec.steps + self.random.normal(0, 0.08))
            for scope in ("local", "reduced"):
                self.writer.append(
                    GradientStats(
                        step=step,
                        rank=self.rank,
                        layer=name,
                        scope=scope,
                        sharded="tp" if self.mesh.tp > 1 and "norm" not in name else "",
                        numel=4096,
                        sum=0.01 * norm,
                        sum_sq=norm**2 / (self.mesh.tp if "norm" not in name else 1),
                        max_abs=norm / 9,
                        zero_count=11,
                        nonfinite_count=0,
                    )
                )

    def sample(self, step: int, when: float, age_s: float) -> None:
        """One device sample."""
        busy = 96 - 7 * self.rank + float(self.random.normal(0, 5)) if step else 30.0
        self.writer.append(
            DeviceSample(
                time=when,
                rank=self.rank,
                step=step,
                phase="forward" if step else "starting",
                cpu_percent=max(0.0, busy),
                rss_bytes=int((610 + 45 * (1 - math.exp(-age_s / 8)) + 9 * self.rank) * MIB),
                threads=5,
                net_sent_bytes=int(1.1e6 * age_s),
                net_received_bytes=int(1.1e6 * age_s),
                disk_read_bytes=int(2e6),
                disk_write_bytes=int(4e3 * age_s),
                device="cpu",
            )
        )

    def milestone(self, step: int) -> None:
        """Validation loss and a sampled text, on rank 0, every ``eval_every`` steps."""
        if self.rank == 0 and self.spec.eval_every and step % self.spec.eval_every == 0:
            loss = 1.42 + 4.2 * math.exp(-step / (0.22 * self.spec.steps))
            self.writer.event("validation", "loss", loss, step=step)
            text = SAMPLES[min(len(SAMPLES) - 1, 3 * step // self.spec.steps)]
            self.writer.event("sample", "text", text, step=step)


def make_fake_run(
    directory: str | Path,
    *,
    ranks: int = 2,
    steps: int = 200,
    plugin: str = "ddp",
    grad_every: int = 20,
    layers: int = 8,
    state: str = "finished",
    names: list[str] | None = None,
    **plan: int,
) -> Path:
    """Write a whole run into ``directory`` (made if need be) and return its path.

    ``state``: running, finished, stopped or failed (also a dead rank). ``names`` replaces the layers' names.
    """
    path = Path(directory)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    spec = fake_spec(ranks=ranks, steps=steps, plugin=plugin, grad_every=grad_every, **plan)
    write_spec(path, spec)
    done = steps if state == "finished" else max(1, steps * 6 // 10)
    start = time.time() - done * STEP_S
    for number in range(ranks):
        with RankLogWriter(path, number, flush_s=10, capacity=10**7) as writer:
            rank = _Rank(number, spec, names or layer_names(layers), writer)
            writer.event("state", "starting")
            writer.event("state", "running")
            rank.sample(0, start, 0.0)
            next_sample = 0.0
            for step in range(1, done + 1):
                age_s = step * STEP_S
                rank.step(step, start + age_s)
                rank.milestone(step)
                if age_s >= next_sample:
                    rank.sample(step, start + age_s, age_s)
                    next_sample = age_s + SAMPLE_EVERY_S
                if step % 4 == 0:
                    writer.flush()  # many batches, as in a run that took its time
            if state == "failed":
                failure = {"ename": "RuntimeError", "evalue": "loss is NaN", "traceback": "Traceback ...\nRuntimeError"}
                writer.event("state", "failed", failure, step=done)
            elif state != "running":
                writer.event("state", state, step=done)
    if state == "failed":
        with RankLogWriter(path, -1) as writer:
            writer.event("rank", "died", {"rank": ranks - 1, "reason": "ended by signal 9 (killed)"}, step=done)
    return path


class LiveFakeRun:
    """A fake run that goes on by itself: ``path``, ``status`` and ``stop()``, like a real one."""

    def __init__(
        self,
        directory: str | Path,
        *,
        ranks: int = 2,
        steps: int = 400,
        layers: int = 4,
        step_s: float = STEP_S,
        **spec: Any,
    ) -> None:
        self.path = Path(directory)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.spec = fake_spec(ranks=ranks, steps=steps, **spec)
        self.status = "starting"
        self.stop_calls = 0
        self._step_s = step_s
        self._stopping = threading.Event()
        write_spec(self.path, self.spec)
        self._writers = [RankLogWriter(self.path, rank) for rank in range(ranks)]
        self._ranks = [_Rank(w.rank, self.spec, layer_names(layers), w) for w in self._writers]
        self._thread = threading.Thread(target=self._train, name="fake-run", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end after the current step."""
        self.stop_calls += 1
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def _train(self) -> None:
        start = time.time()
        for writer in self._writers:
            writer.event("state", "starting")
        for rank in self._ranks:
            rank.sample(0, time.time(), 0.0)
        time.sleep(min(0.5, 5 * self._step_s))
        self.status = "running"
        for writer in self._writers:
            writer.event("state", "running")
        step, sampled = 0, 0.0
        while step < self.spec.steps and not self._stopping.wait(self._step_s):
            step += 1
            now = time.time()
            for rank in self._ranks:
                rank.step(step, now, self._step_s)
                rank.milestone(step)
                if now - sampled >= SAMPLE_EVERY_S:
                    rank.sample(step, now, now - start)
            if now - sampled >= SAMPLE_EVERY_S:
                sampled = now
        ended = "finished" if step == self.spec.steps else "stopped"
        for writer in self._writers:
            writer.event("state", ended, step=step)
            writer.close()
        self.status = ended
