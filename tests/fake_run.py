"""A believable run directory without any training: for tests of plots, the panel and the report.

``make_fake_run`` writes a whole run at once; ``LiveFakeRun`` appends to one over time from a thread, and has the three
things that the panel asks of a run: ``path``, ``status`` and ``stop()``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import tomli_w

from tests.fake_records import FAILURE, MEASURES, STEP_S, FakeRank
from workbench.core import controls
from workbench.core.config import SPEC_FILE, MonitorSpec, ParallelPlan, TrainSpec
from workbench.errors import RunError
from workbench.rundir.log import RankLogWriter
from workbench.rundir.owner import Owner

SAMPLE_EVERY_S = 0.5
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
        eval_every=max(1, min(50, steps // 2)),
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
    detail_every: int | None = None,
    unit: str = "tokens",
    measures: Collection[str] = MEASURES,
    epochs: int = 0,
    early: str = "",
    **plan: int,
) -> Path:
    """Write a whole run into ``directory`` (made if need be) and return its path.

    ``state``: starting (no step yet), running, finished, stopped or failed (also a dead rank). ``names`` replaces the
    layers' names. ``unit``: what throughput counts. ``measures``: what an evaluation logs besides the loss.
    ``detail_every`` steps there are phases and collectives (default: 1, more for many ranks). ``epochs``: how many the
    run trains. ``early``: why it ends after 6 of 10 steps.
    """
    path = Path(directory)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    spec = fake_spec(ranks=ranks, steps=steps, plugin=plugin, grad_every=grad_every, **plan)
    write_spec(path, spec)
    detail_every = detail_every or max(1, min(ranks // 8, steps // 12))
    done = {"finished": steps, "starting": 0}.get("" if early else state, max(1, steps * 6 // 10))
    start = time.time() - done * STEP_S
    for number in range(ranks):
        with RankLogWriter(path, number, flush_s=10, capacity=10**7) as writer:
            rank = FakeRank(number, spec, names or layer_names(layers), writer, detail_every, measures=measures)
            rank.tell(start, "state", "starting")
            rank.sample(0, start, 0.0)
            if state == "starting":
                continue
            rank.tell(start, "state", "running")
            rank.begin(start, unit, epochs=epochs)
            next_sample = 0.0
            for step in range(1, done + 1):
                age_s = step * STEP_S
                rank.step(step, start + age_s)
                rank.milestone(step, start + age_s)
                if age_s >= next_sample:
                    rank.sample(step, start + age_s, age_s)
                    next_sample = age_s + SAMPLE_EVERY_S
                if step % 10 == 0:
                    writer.flush()  # many batches, as in a run that took its time
            if state != "running":  # told of the last step's time, however long it took to write this
                said = FAILURE if state == "failed" else early or None
                rank.tell(start + done * STEP_S, "state", state, said, step=done)
    if state == "failed":
        with RankLogWriter(path, -1) as writer:
            writer.event("rank", "died", {"rank": ranks - 1, "reason": "ended by signal 9 (killed)"}, step=done)
    return path


class LiveFakeRun:
    """A fake run that goes on by itself: ``path``, ``status`` and ``control()``, like a real one.

    Controls do what they say: pause, resume, step, stop; any other is logged by all ranks at the next step.
    ``controls`` lists what was asked.
    """

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
        self.controls: list[tuple[str, Any]] = []
        self._step_s = step_s
        self._stopping = threading.Event()
        self._left: int | None = None  # steps until a pause; None: no pause is asked
        self._asked: list[tuple[str, Any]] = []
        write_spec(self.path, self.spec)
        Owner.this_process().write(self.path)
        self._writers = [RankLogWriter(self.path, rank) for rank in range(ranks)]
        self._ranks = [FakeRank(w.rank, self.spec, layer_names(layers), w, max(1, ranks // 8)) for w in self._writers]
        self._thread = threading.Thread(target=self._train, name="fake-run", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end after the current step."""
        self.stop_calls += 1
        self._stopping.set()

    def control(self, name: str, value: Any = None) -> None:
        """Ask all ranks for a change. ``ConfigError`` for a wrong value, ``RunError`` when the run has ended."""
        if self.status in ("finished", "stopped", "failed"):
            raise RunError(f"run 'fake' is {self.status}: it takes no command any more")
        value = None if value is None else controls.find(name).parse(value)
        self.controls.append((name, value))
        if name == "stop":
            self.stop()
        elif name == "pause":
            self._left = 0
        elif name == "resume":
            self._left = None
        elif name == "step":
            self._left = int(value or 1)
        else:
            self._asked.append((name, value))

    def waiting(self) -> bool:
        """Whether something was asked that no step has taken up."""
        return bool(self._asked)

    def wait(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def _train(self) -> None:
        start = time.time()
        for writer in self._writers:
            writer.event("state", "starting")
        for rank in self._ranks:
            rank.sample(0, time.time(), 0.0)
        time.sleep(min(0.5, 5 * self._step_s))
        self._say("running", 0)
        self._ranks[0].begin(time.time())
        step, sampled = 0, 0.0
        while step < self.spec.steps and not self._stopping.wait(self._step_s):
            if self._left == 0:
                if self.status != "paused":
                    self._say("paused", step)
                continue
            if self.status == "paused":
                self._say("running", step)
            self._left = None if self._left is None else self._left - 1
            step += 1
            now = time.time()
            asked, self._asked = self._asked, []
            for rank in self._ranks:
                rank.step(step, now, self._step_s)
                rank.milestone(step, now)
                for name, value in asked:
                    rank.writer.event("control", name, value, step=step)
                if now - sampled >= SAMPLE_EVERY_S:
                    rank.sample(step, now, now - start)
            if now - sampled >= SAMPLE_EVERY_S:
                sampled = now
        ended = "finished" if step == self.spec.steps else "stopped"
        for writer in self._writers:
            writer.event("state", ended, step=step)
            writer.close()
        self.status = ended

    def _say(self, state: str, step: int) -> None:
        for writer in self._writers:
            writer.event("state", state, step=step)
        self.status = state
