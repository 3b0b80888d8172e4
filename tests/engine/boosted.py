"""What ranks do in the tests: train a small model by a strategy and tell what they saw."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.engine import models
from workbench.core.config import TrainSpec
from workbench.core.frameworks import framework
from workbench.core.records import GradientStats, HistogramStats
from workbench.engine.base.capabilities import PROTOCOLS
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.watch.torch.gradient_statistics import GradientCollector


def workload(kind: str, *, by_loss_fn: bool = False, wrap: str = "", optimizer_kind: str = "AdamW") -> Workload:
    """``wrap``: "compile" or "checkpoint" the model first."""
    network = models.model(kind)
    if wrap == "compile":
        network = torch.compile(network, backend="aot_eager")
    elif wrap == "checkpoint":
        network.gradient_checkpointing_enable({"use_reentrant": False})
    loss = {"loss_fn": lambda model, data: models.criterion(models.outputs(model, data), data)}
    return Workload(
        model=network,
        optimizer=models.optimizer(network, optimizer_kind),
        data=None,  # type: ignore[arg-type]
        names={"tp_plan": models.TP_PLAN} if kind == "plain" else {},
        **(loss if by_loss_fn else {"criterion": models.criterion}),
    )


def prepared(rank: int, spec: TrainSpec, kind: str, **options: Any) -> Any:
    """``options``: of ``workload``."""
    work = workload(kind, **options)
    strategy = load_strategy(spec)(spec, rank)
    strategy.check(spec, work)
    strategy.prepare(work)
    return strategy


def pieces(strategy: Any, kind: str, step: int) -> list[Any]:
    share = models.part(models.batch(kind, step), strategy.coordinates.dp, strategy.mesh.dp)
    return [models.part(share, index, strategy.spec.accumulate) for index in range(strategy.spec.accumulate)]


def train(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str,
    options: dict[str, Any],
    steps: int = 20,
    evaluate_at: int = 3,
    without: Sequence[str] = (),
    token: str = "",
    by_loss_fn: bool = False,
    optimizer_kind: str = "AdamW",
) -> dict[str, Any]:
    """Losses and norms, global, of each step. ``without`` names repairs to leave out."""
    if without:
        from workbench.engine.frameworks.colossal import repairs

        repairs.REPAIRS = tuple(repair for repair in repairs.REPAIRS if repair.name not in without)
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, **options})
    losses, norms = [], []
    with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token):
        strategy = prepared(rank, spec, model, by_loss_fn=by_loss_fn, optimizer_kind=optimizer_kind)
        try:
            for step in range(steps):
                loss = strategy.forward_backward(pieces(strategy, model, step))
                losses.append(_mean_over_ranks(loss))
                norms.append(_norm(strategy))
                strategy.step()
                if step == evaluate_at:
                    _evaluate(strategy, model)
        finally:
            strategy.close()
    return {"losses": losses, "norms": norms}


def _mean_over_ranks(loss: torch.Tensor | None) -> float:
    found = torch.tensor([0.0, 0.0] if loss is None else [loss.item(), 1.0], dtype=torch.float64)
    dist.all_reduce(found)
    return (found[0] / found[1]).item()


def _norm(strategy: Any) -> float:
    total = strategy.grad_sq().clone()
    dist.all_reduce(total)
    return math.sqrt(total.item())


def _evaluate(strategy: Any, kind: str) -> None:
    """A smaller batch than the ones of training, in evaluation mode, must leave training as it was."""
    few = models.part(models.batch(kind, 0), 0, 4)
    found = strategy.forward(few)
    is_last = strategy.coordinates.pp == strategy.mesh.pp - 1
    assert (found is not None) == is_last
    assert strategy.module.training
    if is_last and kind.startswith(("llama", "gpt2", "tied")):
        assert found.logits.shape == (2, 16, strategy.workload.model.config.vocab_size), "whole logits"
        assert math.isfinite(found.loss.item())
        assert not found.logits.requires_grad


def gradients(
    rank: int,
    ranks: int,
    directory: Path,
    *,
    model: str,
    options: dict[str, Any],
    watch_twice: bool = True,
    wrap: str = "",
    token: str = "",
) -> dict[str, Any]:
    """The records of the first step, as they would be logged, and this rank's share of the squared norm."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, **options})
    with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token):
        strategy = prepared(rank, spec, model, wrap=wrap)
        try:
            collector = GradientCollector(keep=True, precision=spec.precision)
            with strategy.watch_batches(collector.take, keep=True):
                strategy.forward_backward(pieces(strategy, model, 0))
            collector.compare(strategy.compare(collector.parts))
            records = collector.finish(1, rank, "local").records()
            collector.take(strategy.reduced_gradients())
            records += collector.finish(1, rank, "reduced").records()
            grad_sq = strategy.grad_sq().item()
            strategy.step()
            with strategy.watch_batches(collector.take) if watch_twice else nullcontext():
                strategy.forward_backward(pieces(strategy, model, 1))
            again = collector.finish(2, rank, "local").records()
            strategy.forward_backward(pieces(strategy, model, 1))  # no longer watched
            assert not collector.finish(3, rank, "local").records()
        finally:
            strategy.close()
    rows = [dataclasses.asdict(record) for record in records if isinstance(record, GradientStats)]
    spread = [dataclasses.asdict(record) for record in records if isinstance(record, HistogramStats)]
    second = [record.layer for record in again]
    return {"rows": rows, "histograms": spread, "grad_sq": grad_sq, "second": second}


def held_gradients(
    rank: int, ranks: int, directory: Path, *, model: str, options: dict[str, Any]
) -> dict[str, tuple[int, float]]:
    """Of all gradients that this rank holds, per layer: how many elements, and the sum of their squares."""
    spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, **options})
    found: dict[str, tuple[int, float]] = {}
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"):
        strategy = prepared(rank, spec, model)
        strategy.forward_backward(pieces(strategy, model, 0))
        for part in strategy.reduced_gradients(all_held=True):
            count, square = found.get(part.layer, (0, 0.0))
            own = (count + part.tensor.numel(), square + part.tensor.double().square().sum().item())
            found[part.layer] = own
        strategy.close()
    return found


def several_gradients(rank: int, ranks: int, directory: Path, *, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``gradients`` of each case, one after the other in the same process."""
    return [gradients(rank, ranks, directory, token=str(number), **case) for number, case in enumerate(cases)]


def capabilities(rank: int, ranks: int, directory: Path, *, plans: list[dict[str, Any]]) -> list[list[str]]:
    """What the strategy of each plan implements, of what a strategy may be capable of."""
    found = []
    for number, options in enumerate(plans):
        spec = TrainSpec.from_options({"ranks": ranks, "batch_size": models.BATCH, **options})
        with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=str(number)):
            strategy = _prepared_by_its_library(rank, spec, options)
            found.append([name.value for name, protocol in PROTOCOLS.items() if isinstance(strategy, protocol)])
            strategy.close()
    return found


def _prepared_by_its_library(rank: int, spec: TrainSpec, options: dict[str, Any]) -> Any:
    if not framework(spec.plan.framework).adopts:
        return prepared(rank, spec, "tied")  # a model that every framework of torch trains
    from tests.engine import keras_ranks

    strategy = load_strategy(spec)(spec, rank)
    strategy.prepare(keras_ranks.workload({"ranks": 1, "batch_size": models.BATCH, **options}))
    return strategy


def modules_after_training(rank: int, ranks: int, directory: Path, **arguments: Any) -> list[str]:
    """Packages that a rank has loaded when it has trained."""
    train(rank, ranks, directory, **arguments)
    return sorted({name.partition(".")[0] for name in sys.modules})
