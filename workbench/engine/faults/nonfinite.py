"""Handles a non-finite loss or gradient: all ranks take the same decision, find its origin, and save the step.

Each rank sees only its own loss and its own share of the reduced gradient. Both are therefore summed over all ranks
before each optimizer step: if one term is non-finite, so is the sum. The ranks have just synchronised in the gradient
reduction, so this costs the latency of one small message (tests/benchmarks/guard.py). From the sums rank 0 also knows
the global loss and gradient norm of every step and logs outliers as events of kind ``spike``. This guard is part of
training, not of monitoring: ``--monitor off`` does not turn it off.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from workbench.core.frameworks import Capability
from workbench.core.knobs import Knobs
from workbench.core.records import EventKind
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.batch import Batch, StandIn, contents
from workbench.engine.base.capabilities import Replayable, gathered
from workbench.engine.base.decision import GO
from workbench.engine.base.generators import ModuleGenerator
from workbench.engine.base.names import users_name
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.strategy import Strategy
from workbench.engine.base.tensor import local_part
from workbench.engine.base.user_log import silenced
from workbench.engine.data.batches import split
from workbench.engine.faults.nonfinite_search import (
    Finding,
    NonfiniteSearch,
    count_nonfinite_values,
    find_origin,
    to_json_number,
)
from workbench.engine.state.batch_snapshot import save_batch_snapshot, save_tensors
from workbench.engine.state.randomness import RandomGenerators
from workbench.rundir.kept_steps import FAULT_FILE, STATISTICS_FILE, WEIGHTS_FILE, fault_directory
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.spikes import SpikeFinder

#: fp16 gradients overflow now and then, and the loss scaler handles that; so many overflows in a row are a fault
ROUTINE_OVERFLOWS = 8
#: number of faults per run whose origin is searched (a search costs a step or two) and whose batch is saved
MAX_SEARCHES = 5
#: largest size of the weights, on one rank, that are saved with a fault
MAX_WEIGHT_BYTES = 2**30


class NonfiniteGuard(StepObserver):
    """Checks loss and gradient before every optimizer step. ``decide`` is collective and agrees on all ranks.

    ``accumulate``: current number of gradient accumulation steps. ``data``: the batch source; if it has a method
    ``indices``, the dataset indices of a faulty batch are logged. ``knobs``: those of the training script; their
    values are saved with the step for a replay, as are the states of the cell's own ``generators``.
    """

    def __init__(
        self,
        run: Path,
        strategy: Strategy,
        log: RankLogWriter,
        control: AgreedControl,
        data: Any = None,
        *,
        knobs: Knobs | None = None,
        generators: Mapping[str, ModuleGenerator] = MappingProxyType({}),
    ) -> None:
        self._run = run
        self._spec = spec = strategy.spec
        self._strategy = strategy
        self._log = log
        self._data = data
        self._knobs = knobs
        self.accumulate = spec.accumulate
        self._action = spec.monitor.on_nonfinite
        self._control = control
        self._replayable = strategy if isinstance(strategy, Replayable) else None
        of_model = {} if self._replayable is None else self._replayable.generators()
        self._generators = RandomGenerators({**of_model, **generators})
        self._batch: Batch = None
        self._random_state = self._generators.capture()
        self._ranks_with_loss = spec.plan.mesh.dp * spec.plan.mesh.peers
        self._spikes = SpikeFinder()
        self._overflow_steps = 0
        self._nonfinite_steps = 0
        self._searches = 0
        self._weights_saved = False
        #: of the global batch of the last step: alike on all ranks
        self.loss = math.nan

    def begins(self, step: int, watch: int) -> None:
        self.cost_ms = 0.0

    def batch(self, step: int, batch: Batch) -> None:
        began = time.perf_counter()
        self._batch = batch
        self._random_state = self._generators.capture()
        self.cost_ms += (time.perf_counter() - began) * 1e3

    def decide(self, step: int, loss: torch.Tensor | None, grad_sq: torch.Tensor | None) -> str:
        """Return ``GO``, ``SKIP`` (call ``Strategy.skip`` instead of ``step``) or ``STOP`` (skip, then end the run).

        ``loss``: this rank's loss, None on ranks without one; ``grad_sq``: this rank's share of the squared gradient
        norm. Both are read on the host; on a GPU the host waits for the step's gradients.
        """
        began = time.thread_time()  # CPU time: waiting for a slower rank does not count
        own = tuple(0.0 if value is None else float(value) for value in (loss, grad_sq))
        self._strategy.mark("communication", -1)
        all_loss, all_sq = self._control.summed(*own)
        self._strategy.mark("optimizer", -1)
        loss_is_nonfinite = not math.isfinite(all_loss)
        is_finite = not loss_is_nonfinite and math.isfinite(all_sq)
        self.loss = all_loss / self._ranks_with_loss
        if self._strategy.rank == 0:
            self._log_spikes(step, self.loss, math.sqrt(all_sq))
        self.cost_ms += (time.thread_time() - began) * 1e3
        if is_finite:
            self._overflow_steps = self._nonfinite_steps = 0
            return GO
        if not loss_is_nonfinite and self._spec.precision == "fp16":
            self._overflow_steps += 1
            if self._overflow_steps < ROUTINE_OVERFLOWS:
                return GO  # the loss scaler skips this step and lowers its scale
        self._nonfinite_steps += 1
        if self._nonfinite_steps == 1:
            self._investigate(step, "loss" if loss_is_nonfinite else "gradient", loss)
        return self._action

    def _log_spikes(self, step: int, loss: float, grad_norm: float) -> None:
        for spike in self._spikes.look(step, loss=loss, grad_norm=grad_norm):
            value = {"value": spike.value, "usual": spike.usual, "score": spike.score}
            self._log.event(EventKind.SPIKE, spike.name, value, step=step)

    def rolled_back(self, step: int) -> None:
        self._spikes.rolled_back(step)

    def _investigate(self, step: int, name: str, loss: torch.Tensor | None) -> None:
        """Find the origin, log it on the rank where it lies, and save the step. Collective."""
        self._searches += 1
        if self._searches > MAX_SEARCHES or self._replayable is None:
            if self._strategy.rank == 0:
                value: dict[str, Any] = {"step": step, "action": self._action}
                if self._replayable is None:
                    lacks = getattr(self._strategy, "lacks", {})
                    value["not_found"] = lacks.get(Capability.REPLAYABLE, "this plan cannot run a step again")
                self._log.event(EventKind.NONFINITE, name, value, step=step)
            return
        with gathered(self._strategy):
            self._locate(step, name, loss, self._replayable)

    def _locate(self, step: int, name: str, loss: torch.Tensor | None, strategy: Replayable) -> None:
        finding, again = self._search(strategy)
        findings = self._control.gathered(None if finding is None else asdict(finding))
        origins = self._find_origins(findings)
        here = self._strategy.coordinates
        kept, why_not = "", ""
        if here.dp in origins:
            kept, why_not = self._save_for_replay(
                step,
                name,
                loss,
                origins[here.dp],
                findings,
                strategy=strategy,
            )
        value = {"step": step, "action": self._action, "kept": kept, "not_kept": why_not}
        if origins.get(here.dp) == self._strategy.rank and finding is not None:
            value |= {"rank": self._strategy.rank, "loss": _number_or_name(loss), "loss_again": _number_or_name(again)}
            value |= asdict(finding) | {
                "batch_nonfinite": count_nonfinite_values(contents(self._batch)),
                "indices": self._indices(step),
            }
            self._log.event(EventKind.NONFINITE, name, value, step=step)
        elif not origins and self._strategy.rank == 0:
            value["not_found"] = "repeating the batch gave finite values in every module: a reduction caused the fault"
            self._log.event(EventKind.NONFINITE, name, value, step=step)

    def _search(self, strategy: Replayable) -> tuple[Finding | None, torch.Tensor | None]:
        after = self._generators.capture()
        try:
            self._generators.restore(self._random_state)
            with silenced(), NonfiniteSearch(strategy.module) as search:
                again = strategy.rerun(split(self._batch, self.accumulate), search.loss)
            return search.found, again
        finally:
            self._generators.restore(after)

    def _find_origins(self, findings: list[dict[str, Any] | None]) -> dict[int, int]:
        """Map each data-parallel replica that has a fault to the rank on which it began."""
        found: dict[int, int] = {}
        mesh = self._strategy.mesh
        where = [mesh.coordinates(rank) for rank in range(len(findings))]
        for dp in {place.dp for place in where}:
            ranks = [rank for rank, finding in enumerate(findings) if finding is not None and where[rank].dp == dp]
            if ranks:
                parts = [(where[rank].pp, mesh.peer(where[rank]), Finding(**findings[rank])) for rank in ranks]  # type: ignore[arg-type]
                found[dp] = ranks[find_origin(parts)]
        return found

    def _save_for_replay(
        self,
        step: int,
        name: str,
        loss: torch.Tensor | None,
        origin: int,
        findings: list[dict[str, Any] | None],
        *,
        strategy: Replayable,
    ) -> tuple[str, str]:
        """Save what a replay needs, on every rank of the replica.

        Returns the directory relative to the run ("" when saving failed) and the reason why anything was not saved.
        """
        directory = fault_directory(self._run, self._strategy.rank, step)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            why_not = self._save_batch(directory) or self._save_weights(directory, strategy.module)
            about = {"step": step, "name": name, "culprit": origin, "loss": _to_hex(loss), "weights": why_not or "kept"}
            about |= {"accumulate": self.accumulate, "finding": findings[origin], "indices": self._indices(step)}
            about |= {"stand_in": isinstance(self._batch, StandIn), "loss_weights": strategy.average.state()}
            if strategy.norms.recorded():
                save_tensors(strategy.norms.recorded(), directory / STATISTICS_FILE)
            about["knobs"] = {} if self._knobs is None else self._knobs.values()
            # "culprit" is the file format's name for the rank of the origin
            (directory / FAULT_FILE).write_text(json.dumps(about), encoding="utf-8")
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            return "", str(error)
        return str(directory.relative_to(self._run)), why_not

    def _save_batch(self, directory: Path) -> str:
        """Save the batch. Returns the reason when it cannot be saved, else ""."""
        batch = self._batch.batch if isinstance(self._batch, StandIn) else self._batch
        try:
            save_batch_snapshot(directory, batch, self._random_state)
        except TypeError as error:
            return str(error)
        return ""

    def _save_weights(self, directory: Path, module: torch.nn.Module) -> str:
        """Save the weights, for the first fault of a run only. Returns the reason when they are not saved, else ""."""
        tensors = named_tensors(module)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self._weights_saved:
            return "the weights were already saved with an earlier fault of this run"
        if size > MAX_WEIGHT_BYTES:
            return f"the weights take {size / 2**20:.0f} MiB; the limit is {MAX_WEIGHT_BYTES / 2**20:.0f} MiB"
        if size > shutil.disk_usage(directory).free / 2:
            return f"the weights take {size / 2**20:.0f} MiB, more than half of the free disk space"
        try:
            save_tensors(tensors, directory / WEIGHTS_FILE)
        except TypeError as error:
            return str(error)
        self._weights_saved = True
        return ""

    def _indices(self, step: int) -> list[int] | None:
        ask = getattr(self._data, "indices", None)
        here = self._strategy.coordinates
        return None if ask is None else ask(step - 1, here.dp, self._strategy.mesh.dp)


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of ``module``, or this rank's parts of them, by the user's names."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {users_name(name): local_part(tensor) for name, tensor in named}


def _number_or_name(loss: torch.Tensor | None) -> float | str | None:
    return None if loss is None else to_json_number(float(loss))


def _to_hex(loss: torch.Tensor | None) -> str | None:
    """The loss as hexadecimal text, which is exact."""
    return None if loss is None else float(loss).hex()
