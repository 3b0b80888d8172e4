"""What ranks do in test_nonfinite: train with a fault planted in one module, which one sample of the data sets off."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.engine import models
from workbench.core.config import TrainSpec
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.capabilities import gathered
from workbench.engine.base.observer import StepObserver
from workbench.engine.base.workload import Workload
from workbench.engine.data.dataset_source import DatasetSource
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.faults.nonfinite import NonfiniteGuard
from workbench.engine.frameworks.torch_common.exchange import exchange_of
from workbench.engine.loop.trainer import Trainer
from workbench.engine.watch.host.sampler import Progress
from workbench.rundir.log import RankLogWriter
from workbench.telemetry.store import Store

TRIGGER_TOKEN = 256  # in the vocabulary, and in no batch of the models'
TRIGGER_INPUT = 60.0
#: where the fault is planted
PLACES = {
    "plain": "1",
    "llama": "model.layers.1.mlp.act_fn",
    "late": "model.layers.3.mlp.act_fn",
    "gpt2": "transformer.h.1.mlp.act",
}


class _InfiniteBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


class Fault(nn.Module):
    """Does what ``inner`` does, and wrong things once ``armed``."""

    def __init__(self, inner: nn.Module, where: str) -> None:
        super().__init__()
        self.inner = inner
        self.where = where
        self.armed = False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.armed and self.where == "backward":
            values = _InfiniteBackward.apply(values)
        found = self.inner(values)
        return (-found.abs() - 1).log() if self.armed and self.where == "forward" else found


def plant(network: nn.Module, place: str, where: str, armed_here: bool) -> None:
    """Put a fault around a module; a batch with the trigger arms it, on ranks where ``armed_here``."""
    parent, _, child = place.rpartition(".")
    fault = Fault(network.get_submodule(place), where)
    setattr(network.get_submodule(parent), child, fault)

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        seen = bool((ids == TRIGGER_TOKEN).any()) if ids is not None else bool((args[0] == TRIGGER_INPUT).any())
        fault.armed = armed_here and seen

    network.register_forward_pre_hook(look, with_kwargs=True)


def jumping(found: Any, data: Any) -> torch.Tensor:
    """The criterion, a hundred times as large for a batch with the trigger."""
    seen = (data["input_ids"] == TRIGGER_TOKEN if isinstance(data, dict) else data[0] == TRIGGER_INPUT).any()
    return models.criterion(found, data) * (100.0 if seen else 1.0)


def samples(kind: str, steps: int, poisoned: int) -> list[Any]:
    """The samples of ``models.batch`` for steps 1 to ``steps``; number ``poisoned`` has the trigger (-1: all)."""
    rows: list[Any] = []
    for step in range(1, steps + 1):
        batch = models.batch(kind, step)
        for row in range(models.BATCH):
            rows.append(
                {name: value[row].clone() for name, value in batch.items()}
                if isinstance(batch, dict)
                else tuple(value[row].clone() for value in batch)
            )
    for row in rows if poisoned < 0 else [rows[poisoned]]:
        if isinstance(row, dict):
            row["input_ids"][0] = TRIGGER_TOKEN
        else:
            row[0][0] = TRIGGER_INPUT
    return rows


def workload(kind: str, spec: TrainSpec, *, where: str, place: str, armed_here: bool, poisoned: int) -> Workload:
    network = models.model(kind)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    plant(network, place, where, armed_here)
    data = DatasetSource(samples(kind, spec.steps, poisoned), spec.batch_size, seed=0, shuffle=False)
    criterion = jumping if where == "criterion" else models.criterion
    return Workload(model=network, optimizer=models.optimizer(network), data=data, criterion=criterion)


def train(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    run: str,
    model: str,
    options: dict[str, Any],
    where: str,
    poisoned: int = -1,
    faulty_rank: int | None = None,
    place: str = "",
) -> dict[str, Any]:
    """Train with the trainer and the guard; ``faulty_rank`` None: the fault is armed wherever the trigger is seen."""
    spec = TrainSpec.from_options(
        {"ranks": ranks, "batch_size": models.BATCH, "eval_every": 0, "final_checkpoint": False, **options}
    )
    path = Path(run)
    (path / "control.jsonl").touch()
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"), RankLogWriter(path, rank) as log:
        armed = faulty_rank in (None, rank)
        place = place or PLACES[model]
        work = workload(model, spec, where=where, place=place, armed_here=armed, poisoned=poisoned)
        strategy = load_strategy(spec)(spec, rank)
        strategy.prepare(work)
        try:
            control = AgreedControl(path, exchange_of(rank, ranks))
            trainer = Trainer(
                run=path,
                spec=spec,
                workload=work,
                strategy=strategy,
                control=control,
                log=log,
                progress=Progress(),
                guard=NonfiniteGuard(path, strategy, log, control, work.data),
            )
            outcome = trainer.run()
            with gathered(strategy):
                finite = all(bool(torch.isfinite(p).all()) for p in strategy.module.parameters())
            gradients = [p.grad is None or not p.grad.abs().sum() for p in strategy.module.parameters()]
        finally:
            strategy.close()
    return {"outcome": outcome, "finite": finite, "cleared": all(gradients)}


def plain(rank: int, ranks: int, directory: Path, *, steps: int, without: int) -> dict[str, Any]:
    """One process, no framework: losses of each step, without the update of step ``without``; weights before it."""
    network = models.model("plain")
    optimizer = models.optimizer(network)
    losses, before = [], {}
    for step in range(1, steps + 1):
        batch = models.batch("plain", step)
        loss = models.criterion(models.outputs(network, batch), batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == without:
            before = {name: value.tolist() for name, value in network.state_dict().items()}
        else:
            optimizer.step()
    return {"losses": losses, "weights": before}


class _KillOnceOnDisk(StepObserver):
    """Kills its process once a step can be read from the log, and leaves word of how far training and the log are."""

    def __init__(self, run: Path, wanted: int) -> None:
        self._store = Store(run)
        self._wanted = wanted
        self._word = run / "word.json"

    def ends(self, step: int) -> None:
        self._store.refresh()
        on_disk = int(self._store.table("steps")["step"].max(initial=0))
        if on_disk >= self._wanted:
            self._word.write_text(json.dumps({"step": step, "on_disk": on_disk}))
            os.kill(os.getpid(), signal.SIGKILL)


def killed(rank: int, ranks: int, directory: Path, *, run: str, step: int) -> None:
    """Train alone until killed in the middle, once ``step`` is on the disk."""
    spec = TrainSpec.from_options({"ranks": 1, "batch_size": models.BATCH, "steps": 10**6, "eval_every": 0})
    path = Path(run)
    (path / "control.jsonl").touch()
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"), RankLogWriter(path, rank) as log:
        network = models.model("plain")
        data = DatasetSource(samples("plain", 1, 0), spec.batch_size, seed=0, shuffle=False)
        work = Workload(model=network, optimizer=models.optimizer(network), data=data, criterion=models.criterion)
        strategy = load_strategy(spec)(spec, rank)
        strategy.prepare(work)
        Trainer(
            run=path,
            spec=spec,
            workload=work,
            strategy=strategy,
            control=AgreedControl(path, exchange_of(rank, ranks)),
            log=log,
            progress=Progress(),
            observers=[_KillOnceOnDisk(path, step)],
        ).run()
