"""What a rank of a fake run logs: believable records of every table, the same ones for the same seed."""

from __future__ import annotations

import json
import math
from collections.abc import Collection

import numpy as np

from tests.fake_schedule import one_f_one_b, pipeline_length
from workbench.core.config import TrainSpec
from workbench.core.mesh import Mesh
from workbench.core.records import (
    ActivationStats,
    AttentionStats,
    CollectiveRecord,
    DeviceSample,
    Event,
    GradientStats,
    HistogramStats,
    PhaseRecord,
    RouterStats,
    SpectralStats,
    StepRecord,
    ValueRecord,
    WeightStats,
)
from workbench.engine.watch.host.phase_spans import NO_PHASE, Span, compute_spans
from workbench.events.alerts import Alert
from workbench.rundir.log import RankLogWriter

STEP_S = 0.12
MIB = 2**20
NUMEL = 4096
CLASSES = 10
SAMPLES = (
    "def __init__(self, se the thelf):\n    return ste selfr",
    "def read(self, name):\n    if not self._name:\n        raise ValueError('no name')\n    return self.name",
    "class Reader:\n    def __init__(self, path, mode='r'):\n        self.path = path\n        self._file = None\n",
)
FAILURE = {
    "ename": "RuntimeError",
    "evalue": "loss is NaN",
    "peer": False,
    "traceback": 'Traceback (most recent call last):\n  File "cell.py", line 12\nRuntimeError: loss is NaN',
}


#: what an evaluation can log besides the loss
MEASURES = ("accuracy", "perplexity", "confusion_matrix", "text")


class FakeRank:
    """Draws the records of one rank. ``detail_every``: steps between phases and collectives. ``measures``: what its
    evaluations log besides the loss."""

    def __init__(
        self,
        rank: int,
        spec: TrainSpec,
        names: list[str],
        writer: RankLogWriter,
        detail_every: int,
        *,
        measures: Collection[str] = MEASURES,
    ) -> None:
        self.rank, self.spec, self.writer, self.detail_every = rank, spec, writer, detail_every
        self.measures = measures
        self.mesh: Mesh = spec.plan.mesh
        self.here = self.mesh.coordinates(rank)
        per_stage = math.ceil(len(names) / self.mesh.pp)
        self.first_layer = self.here.pp * per_stage
        self.names = names[self.first_layer : self.first_layer + per_stage]
        self.random = np.random.default_rng(spec.seed + rank)
        self.lr = spec.lr or 1e-3
        self.is_straggler = rank == straggler(spec.plan.ranks)
        self.out = writer.directory / "output.txt"

    def step(self, step: int, when: float, step_s: float = STEP_S) -> None:
        """The records of one step."""
        noise = float(self.random.normal(0, 0.06))
        loss = 1.35 + 4.2 * math.exp(-step / (0.22 * self.spec.steps)) + noise
        jitter = 0.02 * self.rank / self.mesh.world_size + abs(float(self.random.normal(0, 0.03)))
        step_ms = step_s * 1e3 * (1 + jitter)
        data_ms = 0.4 + abs(float(self.random.normal(0, 0.2)))
        self.writer.append(
            StepRecord(
                time=when,
                step=step,
                rank=self.rank,
                loss=loss if self.here.pp == self.mesh.pp - 1 else math.nan,
                lr=self.lr * min(1.0, step / 20) * (0.5 if step > 0.7 * self.spec.steps else 1.0),
                grad_sq=(0.4 + 2.0 * math.exp(-step / 50) + 0.3 * abs(noise)) ** 2 / self.mesh.world_size,
                tokens=self.spec.batch_size // self.mesh.dp * 128,
                step_time_ms=step_ms,
                data_wait_ms=data_ms,
                clip=1.0,
                monitor_ms=0.6,
            )
        )
        self._log_values(step, noise)
        if step % self.detail_every == 0:
            self._phases(step, step_ms, data_ms)
        every = self.spec.monitor.grad_every
        if every and step % every == 0:
            self._gradients(step)
            self._histograms(step)
            self._weights(step)
            self._inside(step)
        self._print(step, loss)

    def _log_values(self, step: int, noise: float) -> None:
        """What the cell logs: of three sizes, one name of them a curve per rank."""
        for name, reduce, value in (
            ("entropy", "mean", 3.0 * math.exp(-step / 80) + noise),
            ("router load", "none", 0.02 + 0.004 * self.rank + noise / 40),
            ("tokens seen", "sum", 128.0 * step),
        ):
            self.writer.append(ValueRecord(step=step, rank=self.rank, name=name, reduce=reduce, value=value, count=1))

    def _phases(self, step: int, step_ms: float, data_ms: float) -> None:
        """What fills the step, visit by visit, in rows as a real rank sums them; and the collectives in it."""
        slow = (1.0 if not self.is_straggler else 1.16) * (1 + 0.04 * float(self.random.random()))
        compute_ms = 0.55 * step_ms * slow
        visits = [("monitor", -1, 0.1), ("data", -1, data_ms), ("transfer", -1, 0.01 * step_ms)]
        if self.mesh.pp > 1:
            micro_batches = self.spec.plan.micro_batches
            unit = 0.8 * step_ms / pipeline_length(self.mesh.pp, micro_batches)
            visits += [(n, micro, m * unit) for n, micro, m in one_f_one_b(self.mesh.pp, micro_batches, self.here.pp)]
        else:
            pieces = self.spec.accumulate
            for piece in range(pieces):
                micro = piece if pieces > 1 else -1
                for name, share in (("forward", 1 / 3), ("backward", 2 / 3)):
                    half = compute_ms * share / pieces / 2
                    between = [("communication", micro, 0.01 * step_ms)] if self.mesh.tp > 1 else []
                    visits += [(name, micro, half), *between, (name, micro, half)]
        at = sum(length for *_, length in visits)
        exposed = max(0.5, 0.9 * step_ms - at)
        if self.mesh.dp > 1 or self.mesh.tp > 1:
            visits.append(("communication", visits[-1][1], exposed))
            self._collectives(step, at, exposed, compute_ms / 3)
        visits += [("monitor", -1, 0.4), ("optimizer", -1, 0.01 * step_ms)]
        if self.mesh.world_size > 1:  # the norm is everybody's: who is early waits
            left = 0.95 * step_ms - sum(length for *_, length in visits)
            visits.append(("communication", -1, max(0.2, left)))
        visits += [("optimizer", -1, 0.04 * step_ms), ("monitor", -1, 0.1)]
        starts = np.cumsum([0.0, *(max(0.01, length) for *_, length in visits)]).tolist()
        rows = compute_spans(starts, [*((name, micro) for name, micro, _ in visits), NO_PHASE])
        if self.mesh.pp == 1 and self.mesh.dp > 1:
            rows.append(Span("overlapped", -1, at - compute_ms / 3, compute_ms / 3))
        for row in rows:
            self.writer.append(PhaseRecord(step=step, rank=self.rank, **row._asdict()))

    def _collectives(self, step: int, at: float, exposed: float, hidden: float) -> None:
        rows = []
        if self.mesh.dp > 1:
            kind = "all_reduce" if self.spec.plan.plugin in ("ddp", "hybrid") else "reduce_scatter"
            rows += [(kind, "dp", self.mesh.dp, NUMEL * 4 * len(self.names), hidden + exposed * 0.7, exposed * 0.7)]
            if kind == "reduce_scatter":
                rows += [("all_gather", "dp", self.mesh.dp, NUMEL * 4 * len(self.names), exposed * 0.3, exposed * 0.3)]
        if self.mesh.tp > 1:
            rows += [("all_reduce", "tp", self.mesh.tp, 64 * 1024 * 4, exposed * 0.3, exposed * 0.3)]
        if self.mesh.pp > 1:
            rows += [("send", "pp", 2, 32 * 1024 * 4, 0.4, 0.1), ("recv", "pp", 2, 32 * 1024 * 4, 0.9, 0.6)]
        for kind, group, size, count, duration, waits in rows:
            spread = 1 + 0.1 * float(self.random.random())
            self.writer.append(
                CollectiveRecord(
                    step=step,
                    rank=self.rank,
                    kind=kind,
                    group=group,
                    group_size=size,
                    bytes=count,
                    start_ms=at,
                    duration_ms=duration * spread,
                    exposed_ms=waits,
                )
            )

    def _gradients(self, step: int) -> None:
        # local = reduced + noise of a replica, seen at right angles: |local|^2 = |reduced|^2 (1 + spread^2)
        spread = (0.6 + 1.4 * step / self.spec.steps) * (1.3 if self.is_straggler else 1.0)
        for index, name in enumerate(self.names):
            norm = self._norm(index, step)
            split = "tp" if self.mesh.tp > 1 and "norm" not in name else ""
            own_sq = norm**2 / (self.mesh.tp if split else 1)
            for scope in ("local", "reduced"):
                local = scope == "local" and self.mesh.dp > 1
                near = float(self.random.normal(1.0, 0.03))
                self.writer.append(
                    GradientStats(
                        step=step,
                        rank=self.rank,
                        layer=name,
                        scope=scope,
                        sharded=split,
                        numel=NUMEL,
                        sum=0.01 * norm,
                        sum_sq=own_sq * (1 + spread**2) if local else own_sq,
                        max_abs=norm / 9,
                        zero_count=11,
                        nonfinite_count=0,
                        dot=own_sq * near if scope == "local" else math.nan,
                        dot_kind="exact" if scope == "local" else "",
                        underflow_count=0,
                    )
                )

    def _histograms(self, step: int) -> None:
        for index, name in enumerate(self.names):
            centre = math.log2(self._norm(index, step) / math.sqrt(NUMEL))
            exponents = np.arange(-34, 2)
            weight = np.exp(-0.5 * ((exponents + 0.5 - centre) / (1.6 if "norm" in name else 2.2)) ** 2)
            counts = np.round(weight / weight.sum() * (NUMEL - 11)).astype(int)
            some = np.flatnonzero(counts)
            self.writer.append(
                HistogramStats(
                    step=step,
                    rank=self.rank,
                    layer=name,
                    scope="reduced",
                    sharded="tp" if self.mesh.tp > 1 and "norm" not in name else "",
                    first_exponent=int(exponents[some[0]]),
                    counts=[int(count) for count in counts[some[0] : some[-1] + 1]],
                    zero_count=11,
                    nonfinite_count=0,
                    underflow_count=0,
                )
            )

    def _weights(self, step: int) -> None:
        for index, name in enumerate(self.names):
            weight = 64 * (1 + 0.002 * step)
            ratio = 10 ** (-2.6 - 0.4 * math.cos(index) - 0.6 * step / self.spec.steps)
            self.writer.append(
                WeightStats(
                    step=step,
                    rank=self.rank,
                    layer=name,
                    sharded="",
                    numel=NUMEL,
                    weight_sq=weight**2,
                    update_sq=(weight * ratio) ** 2,
                    moment1_sq=1e-4,
                    moment2_sq=1e-9,
                )
            )

    def _inside(self, step: int) -> None:
        """What ``--watch`` adds: outputs, gradients, attention, and a router in every layer."""
        here = {"step": step, "rank": self.rank, "micro_batch": -1}
        for index, name in enumerate(self.names):
            size = 0.8 * math.exp(0.1 * (self.first_layer + index)) * (1 + 0.2 * float(self.random.random()))
            for what, scale in (("output", size), ("gradient", 1e-4 / size)):
                self.writer.append(
                    ActivationStats(
                        **here,
                        layer=name,
                        what=what,
                        sharded="",
                        numel=NUMEL,
                        sum=0.01 * scale * NUMEL,
                        sum_sq=scale**2 * NUMEL,
                        max_abs=5 * scale,
                        zero_count=40,
                        nonfinite_count=0,
                        underflow_count=7,
                        overflow_count=0,
                    )
                )
            share = 0.85 - 0.5 * step / self.spec.steps + 0.1 * math.cos(index)
            sums = {"queries": 64, "entropy_sum": 64 * 4.0 * share, "uniform_sum": 64 * 4.0}
            self.writer.append(AttentionStats(**here, layer=name, sharded="", max_logit=3 + 8 * (1 - share), **sums))
            load = [128 + (40 if expert == index % 4 else 0) for expert in range(4)]
            tokens = sum(load) // 2
            self.writer.append(
                RouterStats(**here, layer=name, tokens=tokens, top_k=2, load=load, entropy_sum=1.1 * tokens)
            )

            sizes = {"weight_sq": 50.0 + index, "sigma_max": 2 + step / self.spec.steps}
            self.writer.append(SpectralStats(step=step, rank=self.rank, layer=name, **sizes))

    def _norm(self, index: int, step: int) -> float:
        depth = (self.first_layer + index) / 40
        wave = 1.3 * math.cos(3 * depth) - 0.9 * step / self.spec.steps
        return float(10 ** (-1.6 + wave + float(self.random.normal(0, 0.08))))

    def sample(self, step: int, when: float, age_s: float) -> None:
        """One device sample."""
        busy = 96 - 9 * (self.rank % 8) / 8 - 14 * self.is_straggler + float(self.random.normal(0, 4)) if step else 30.0
        self.writer.append(
            DeviceSample(
                time=when,
                rank=self.rank,
                step=step,
                phase="forward" if step else "starting",
                cpu_percent=max(0.0, busy),
                rss_bytes=int((610 + 45 * (1 - math.exp(-age_s / 8)) + 9 * (self.rank % 8)) * MIB),
                threads=5,
                net_sent_bytes=int(1.1e6 * age_s),
                net_received_bytes=int(1.1e6 * age_s),
                disk_read_bytes=int(2e6),
                disk_write_bytes=int(4e3 * age_s),
                device="cpu",
            )
        )

    def begin(self, when: float, unit: str = "tokens", *, epochs: int = 0) -> None:
        """What rank 0 says once: the settings in force, what a batch is, and what it knows of ``epochs``."""
        if self.rank:
            return
        value = {"lr": 0.0, "clip": 1.0, "weight_decay": 0.1, "accumulate": self.spec.accumulate, "log_every": 1}
        watched = {"grad_every": self.spec.monitor.grad_every or 0, "grad_layers": "", "watch": ""}
        self.tell(when, "settings", "in_force", {**value, **watched, "frozen": []})
        self.tell(when, "data", "batch", {"samples": self.spec.batch_size, "unit": unit}, step=1)
        if epochs:
            length = self.spec.steps / epochs
            told = {"epochs": epochs, "steps_per_epoch": length, "steps": self.spec.steps, "done": 0.0}
            self.tell(when, "data", "epochs", told)

    def milestone(self, step: int, when: float) -> None:
        """What happens now and then: rank 0 evaluates, samples and takes commands, all ranks apply them."""
        steps = self.spec.steps
        if self.rank == 0 and self.spec.eval_every and step % self.spec.eval_every == 0:
            loss = 1.42 + 4.2 * math.exp(-step / (0.22 * steps))
            share = 0.3 + 0.65 * step / steps
            self.tell(when, "validation", "loss", loss, step=step)
            text = SAMPLES[min(len(SAMPLES) - 1, 3 * step // steps)]
            found = {
                "accuracy": share,
                "perplexity": math.exp(loss),
                "confusion_matrix": confusion(share),
                "text": text,
            }
            for name in self.measures:
                self.tell(when, "sample" if name == "text" else "validation", name, found[name], step=step)
        if step == int(0.7 * steps) + 1:
            self.tell(when, "control", "lr", self.lr / 2, step=step, old=self.lr)
        if step == int(0.3 * steps):
            self.tell(when, "checkpoint", "saved", {"path": f"checkpoints/step-{step:06d}", "ms": 41.0}, step=step)
        if self.rank == 0 and step == int(0.45 * steps):
            self.tell(when, "spike", "grad_norm", {"value": 3.1, "usual": 0.6, "score": 12.0}, step=step)
            self._alerts(step, when)
            self.tell(when, "monitor", "interval", 20, step=step, old=10)
        if self.is_straggler and step == int(0.5 * steps):
            value = {"layer": self.names[-1], "count": 3}
            self.tell(when, "nonfinite", "gradient", value, step=step)

    def _alerts(self, step: int, when: float) -> None:
        """Two alerts of one step, one of which ends."""
        alerts = [
            Alert(time=when, step=step, name="rank_gradient_differs", state="begins", value=9.4, limit=0.7,
                  where="backward", rank=self.mesh.world_size - 1),
            Alert(time=when, step=step, name="grad_norm_spike", state="begins", value=3.1, limit=1.8,
                  where="reduction", order=1, event="spike grad_norm"),
            Alert(time=when + 1, step=step + 5, name="grad_norm_spike", state="ends", since=step),
        ]  # fmt: skip
        for alert in alerts:
            self.writer.append(alert.to_event())

    def tell(
        self, when: float, kind: str, name: str, value: object = None, *, step: int = 0, old: object = None
    ) -> None:
        """An event of the time ``when``."""
        values = {"value": json.dumps(value), "old_value": json.dumps(old)}
        self.writer.append(Event(time=when, step=step, rank=self.rank, kind=kind, name=name, **values))

    def _print(self, step: int, loss: float) -> None:
        if step == 1 or step % 25 == 0:
            with self.out.open("a", encoding="utf-8") as file:
                if step == 1:
                    file.write("building the model: 1,068,032 parameters\nfirst batch: [8, 128] int64\n")
                file.write(f"step {step}: all ranks agree\n")
                if self.rank % 4 == 0:
                    file.write(f"step {step}: my loss is {loss:.4f}\n")


def straggler(ranks: int) -> int:
    """The rank that is slower than the others."""
    return ranks - 1 if ranks < 4 else (ranks * 5) // 8


def confusion(right: float) -> list[list[int]]:
    """A confusion matrix of 40 samples a class of which a share is right, the rest among neighbours."""
    rows = []
    for true in range(CLASSES):
        row = [0] * CLASSES
        row[true] = round(40 * right)
        left = 40 - row[true]
        row[(true + 1) % CLASSES] += left - left // 3
        row[(true - 3) % CLASSES] += left // 3
        rows.append(row)
    return rows
