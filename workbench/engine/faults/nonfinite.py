"""What happens at a loss or gradient that is not finite: all ranks decide alike, find its source, and keep the step.

Whether a rank sees one is a local matter (its loss, its share of the reduced gradient), so before each optimizer step
both are summed over all ranks: where one is not finite, neither is the sum. Ranks have just met in the reduction of the
gradients, so what this costs is one small message's latency (tests/benchmarks/guard.py). So rank 0 knows the global
loss and norm of each step, and logs what stands out of the steps before: kind ``spike``. All this is part of training
and not of watching: ``--monitor off`` leaves it on.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.batch import Batch
from workbench.engine.base.capabilities import Replayable
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.data.sources import split
from workbench.engine.faults.culprit import FaultWatch, Finding, as_json, first_of, nonfinite_in
from workbench.engine.state.kept_step import save_moment, save_tensors
from workbench.engine.state.randomness import Randomness
from workbench.run.replay import FAULT_FILE, WEIGHTS_FILE
from workbench.rundir.log import RankLogWriter, rank_directory
from workbench.telemetry.spikes import SpikeFinder

GO, SKIP, STOP = "go", "skip", "stop"
#: in fp16 a gradient that overflows is the loss scaler's daily business; so many in a row are not
ROUTINE_OVERFLOWS = 8
#: faults of a run whose source is looked for (each costs a step or two) and whose batch is kept
MOST_SEARCHES = 5
#: largest part of the model, on one rank, that is kept with a fault
MOST_WEIGHT_BYTES = 2**30


def fault_directory(run: str | Path, rank: int, step: int) -> Path:
    """Where a rank keeps what is needed to replay its part of a step."""
    return rank_directory(run, rank) / f"nonfinite-step-{step:06d}"


class NonfiniteGuard(StepObserver):
    """Decides before every optimizer step. ``decide`` is collective; it answers the same on all ranks.

    ``accumulate``: into how many pieces a share is cut now. ``data``: asked for the dataset indices of a batch."""

    def __init__(
        self,
        run: Path,
        strategy: Strategy,
        log: RankLogWriter,
        control: AgreedControl,
        data: Any = None,
    ) -> None:
        self._run = run
        self._spec = spec = strategy.spec
        self._strategy = strategy
        self._log = log
        self._data = data
        self.accumulate = spec.accumulate
        self._action = spec.monitor.on_nonfinite
        self._control = control
        self._replayable = strategy if isinstance(strategy, Replayable) else None
        self._random = Randomness({} if self._replayable is None else self._replayable.generators())
        self._batch: Batch = None
        self._state = self._random.now()
        self._with_loss = spec.plan.mesh.dp * spec.plan.mesh.tp
        self._spikes = SpikeFinder()
        self._overflows = 0
        self._streak = 0
        self._searches = 0
        self._weights_kept = False

    def begins(self, step: int, watch: int) -> None:
        self.cost_ms = 0.0

    def batch(self, step: int, batch: Batch) -> None:
        began = time.perf_counter()
        self._batch = batch
        self._state = self._random.now()
        self.cost_ms += (time.perf_counter() - began) * 1e3

    def decide(self, step: int, loss: torch.Tensor | None, grad_sq: torch.Tensor | None) -> str:
        """Judge a step by its loss and, where the strategy knows it, its share of the squared norm.

        ``GO``, ``SKIP`` (``Strategy.skip`` instead of ``step``) or ``STOP`` (skip, and end the run after it).

        Reads both numbers on the host: free on a CPU, on a GPU the host waits for the step's gradients.
        """
        began = time.thread_time()  # of which waiting for a slower rank is no part
        mine = tuple(0.0 if value is None else float(value) for value in (loss, grad_sq))
        self._strategy.mark("communication", -1)
        all_loss, all_sq = self._control.summed(*mine)
        self._strategy.mark("optimizer", -1)
        bad_loss = not math.isfinite(all_loss)
        bad = bad_loss or not math.isfinite(all_sq)
        if self._strategy.rank == 0:
            self._tell_spikes(step, all_loss / self._with_loss, math.sqrt(all_sq))
        self.cost_ms += (time.thread_time() - began) * 1e3
        if not bad:
            self._overflows = self._streak = 0
            return GO
        if not bad_loss and self._spec.precision == "fp16":
            self._overflows += 1
            if self._overflows < ROUTINE_OVERFLOWS:
                return GO  # the loss scaler drops this step and lowers its scale
        self._streak += 1
        if self._streak == 1:
            self._investigate(step, "loss" if bad_loss else "gradient", loss)
        return self._action

    def _tell_spikes(self, step: int, loss: float, grad_norm: float) -> None:
        for spike in self._spikes.look(step, loss=loss, grad_norm=grad_norm):
            value = {"value": spike.value, "usual": spike.usual, "score": spike.score}
            self._log.event("spike", spike.name, value, step=step)

    def rolled_back(self, step: int) -> None:
        self._spikes.rolled_back(step)

    def _investigate(self, step: int, name: str, loss: torch.Tensor | None) -> None:
        """Find the source and log it, on the rank that has it. Collective; rare, so what it costs does not matter."""
        self._searches += 1
        if self._searches > MOST_SEARCHES or self._replayable is None:
            if self._strategy.rank == 0:
                self._log.event("nonfinite", name, {"step": step, "action": self._action}, step=step)
            return
        finding, again = self._search(self._replayable)
        places = self._control.gathered(None if finding is None else asdict(finding))
        culprits = self._culprits(places)
        here = self._strategy.coordinates
        kept, why_not = "", ""
        if here.dp in culprits:
            kept, why_not = self._keep(step, name, loss, culprits[here.dp], places, module=self._replayable.module)
        value: dict[str, Any] = {"step": step, "action": self._action, "kept": kept, "not_kept": why_not}
        if culprits.get(here.dp) == self._strategy.rank and finding is not None:
            value |= {"rank": self._strategy.rank, "loss": _number(loss), "loss_again": _number(again)}
            value |= asdict(finding) | {"batch_nonfinite": nonfinite_in(self._batch), "indices": self._indices(step)}
            self._log.event("nonfinite", name, value, step=step)
        elif not culprits and self._strategy.rank == 0:
            value["not_found"] = "the same batch gave finite numbers in every module: it came about in a reduction"
            self._log.event("nonfinite", name, value, step=step)

    def _search(self, strategy: Replayable) -> tuple[Finding | None, torch.Tensor | None]:
        after = self._random.now()
        try:
            self._random.restore(self._state)
            with FaultWatch(strategy.module) as watch:
                again = strategy.rerun(split(self._batch, self.accumulate), watch.loss)
            return watch.found, again
        finally:
            self._random.restore(after)

    def _culprits(self, places: list[dict[str, Any] | None]) -> dict[int, int]:
        """Data-parallel replica -> the rank of it where the fault began; only replicas that have one."""
        found: dict[int, int] = {}
        where = [self._strategy.mesh.coordinates(rank) for rank in range(len(places))]
        for dp in {place.dp for place in where}:
            ranks = [rank for rank, place in enumerate(places) if place is not None and where[rank].dp == dp]
            if ranks:
                parts = [(where[rank].pp, where[rank].tp, Finding(**places[rank])) for rank in ranks]  # type: ignore[arg-type]
                found[dp] = ranks[first_of(parts)]
        return found

    def _keep(
        self,
        step: int,
        name: str,
        loss: torch.Tensor | None,
        culprit: int,
        places: list[dict[str, Any] | None],
        *,
        module: torch.nn.Module,
    ) -> tuple[str, str]:
        """Write what a replay needs, on every rank of the replica: where it is, or why it is not there."""
        directory = fault_directory(self._run, self._strategy.rank, step)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            save_moment(directory, self._batch, self._state)
            weights = self._keep_weights(directory, module)
            about = {"step": step, "name": name, "culprit": culprit, "loss": _exact(loss), "weights": weights or "kept"}
            about |= {"accumulate": self.accumulate, "finding": places[culprit], "indices": self._indices(step)}
            (directory / FAULT_FILE).write_text(json.dumps(about), encoding="utf-8")
        except (OSError, TypeError) as error:
            shutil.rmtree(directory, ignore_errors=True)
            return "", str(error)
        return str(directory.relative_to(self._run)), weights

    def _keep_weights(self, directory: Path, module: torch.nn.Module) -> str:
        """Once in a run: the weights of a later fault are hardly worth a second copy. Why not, or ""."""
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self._weights_kept:
            return "an earlier fault of this run has the weights of its step"
        if size > MOST_WEIGHT_BYTES:
            return f"{size / 2**20:.0f} MiB of weights are more than the {MOST_WEIGHT_BYTES / 2**20:.0f} MiB kept"
        if size > shutil.disk_usage(directory).free / 2:
            return f"{size / 2**20:.0f} MiB of weights are more than half of the free disk"
        save_tensors(tensors, directory / WEIGHTS_FILE)
        self._weights_kept = True
        return ""

    def _indices(self, step: int) -> list[int] | None:
        ask = getattr(self._data, "indices", None)
        here = self._strategy.coordinates
        return None if ask is None else ask(step - 1, here.dp, self._strategy.mesh.dp)


def _number(loss: torch.Tensor | None) -> float | str | None:
    return None if loss is None else as_json(float(loss))


def _exact(loss: torch.Tensor | None) -> str | None:
    """Every bit of a loss, as text."""
    return None if loss is None else float(loss).hex()
