"""What ranks do in test_relaunch."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from tests.engine import boosted, models
from workbench.core.config import TrainSpec
from workbench.engine.frameworks.colossal.ranks import joined
from workbench.errors import ClusterError


def train_all(rank: int, ranks: int, directory: Path, *, plans: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = {"losses": [], "descriptors": [], "threads": []}
    for index, (model, options) in enumerate(plans):
        trained = boosted.train(
            rank, ranks, directory, model=model, options=options, steps=3, evaluate_at=1, token=str(index)
        )
        found["losses"].append(trained["losses"])
        found["descriptors"].append(len(os.listdir("/proc/self/fd")))
        found["threads"].append(len(os.listdir("/proc/self/task")))
    return found


def shrink(rank: int, ranks: int, directory: Path) -> list[float] | None:
    """All ranks train, then the first two alone."""
    tp_pp = {"plugin": "hybrid", "tp": 2, "pp": 2, "micro_batches": 2}
    boosted.train(rank, ranks, directory, model="llama", options=tp_pp, steps=2, token="all")
    if rank > 1:
        return None
    options = {"plugin": "hybrid", "tp": 2}
    return boosted.train(rank, 2, directory, model="llama", options=options, steps=2, token="two")["losses"]


def after_failure(rank: int, ranks: int, directory: Path) -> bool:
    spec = TrainSpec.from_options({"ranks": ranks, "plugin": "hybrid", "tp": 2})
    try:
        with joined(rank, ranks, directory, device_type="cpu", token="fails"):
            strategy = boosted.prepared(rank, spec, "llama")
            try:
                strategy.forward_backward(boosted.pieces(strategy, "llama", 0))
                raise ZeroDivisionError("in the user's loss")
            finally:
                strategy.close()
    except ZeroDivisionError:
        trained = boosted.train(rank, ranks, directory, model="gpt2", options={"plugin": "zero1"}, token="works")
        return trained["losses"][-1] < trained["losses"][0]
    return False


def after_death(rank: int, ranks: int, directory: Path) -> dict[str, bool]:
    noticed = False
    try:
        with joined(rank, ranks, directory, device_type="cpu", token="dies"):
            spec = TrainSpec.from_options({"ranks": ranks, "plugin": "ddp"})
            strategy = boosted.prepared(rank, spec, "llama")
            strategy.forward_backward(boosted.pieces(strategy, "llama", 0))
            if rank == 1:
                os._exit(9)
            try:
                dist.all_reduce(torch.ones(1))
            finally:
                strategy.close()
    except RuntimeError:
        noticed = True
    trained = boosted.train(0, 1, directory, model="plain", options={"plugin": "ddp"}, token="alone")
    return {"noticed": noticed, "trained_alone": trained["losses"][-1] < trained["losses"][0]}


def alone(rank: int, ranks: int, directory: Path, *, join_timeout_s: float) -> str:
    """What a rank is told whose peers never come."""
    try:
        with joined(rank, ranks + 1, directory, device_type="cpu", join_timeout_s=join_timeout_s):
            return "joined"
    except ClusterError as error:
        return str(error)


def without_rank_0(rank: int, ranks: int, directory: Path) -> str:
    try:
        with joined(1, 2, directory, device_type="cpu", join_timeout_s=0.3):
            return "joined"
    except ClusterError as error:
        return str(error)


def on_port(rank: int, ranks: int, directory: Path, *, port: int) -> str:
    try:
        with joined(0, 1, directory, device_type="cpu", master_port=port):
            return "joined"
    except ClusterError as error:
        return str(error)


def skips(
    rank: int, ranks: int, directory: Path, *, options: dict[str, Any], model: str = "gpt2"
) -> list[dict[str, Any]]:
    """Sixteen steps in fp16 that start with a loss scale which overflows."""
    from workbench.engine.frameworks.colossal.plugin import Plan

    spec = TrainSpec.from_options({"ranks": ranks, "precision": "fp16", **options})
    found = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Plan, "initial_scale", 2.0**24))
        stack.enter_context(joined(rank, ranks, directory, device_type="cpu"))
        strategy = boosted.prepared(rank, spec, model)
        for step in range(16):
            with strategy.gathered():
                before = [parameter.detach().clone() for parameter in strategy.plan.module.parameters()]
            loss = strategy.forward_backward(boosted.pieces(strategy, model, step))
            updated = strategy.step()
            with strategy.gathered():
                after = strategy.plan.module.parameters()
                changed = any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
            found.append({"updated": updated, "changed": changed, "loss": None if loss is None else loss.item()})
        strategy.close()
    return found


def refused(rank: int, ranks: int, directory: Path, *, model: str, options: dict[str, Any], **kind: Any) -> list[str]:
    """The field and the message with which a plan is refused."""
    from workbench.engine.frameworks.colossal.strategy import ColossalStrategy
    from workbench.errors import ConfigError

    work = boosted.workload(model, **kind)
    try:
        ColossalStrategy.check(TrainSpec.from_options({"batch_size": models.BATCH, **options}), work)
    except ConfigError as error:
        return [error.field or "", str(error)]
    return ["", "taken"]


def moment_of_half_a_gradient(rank: int, ranks: int, directory: Path, *, is_ours: bool) -> float:
    """The first moment after one step of HybridAdam with the bf16 gradient 1.0, divided by 2; of ours, or upstream."""
    from colossalai.nn.optimizer import HybridAdam

    from workbench.engine.frameworks.colossal import repairs
    from workbench.engine.frameworks.colossal.gemini_plan import step_divided

    repairs.apply("cpu")
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    weight.grad = torch.ones(1, dtype=torch.bfloat16)
    weight.data = torch.zeros(1)  # as Gemini does
    optimizer = HybridAdam([weight], betas=(0.5, 0.999))
    if is_ours:
        step_divided(optimizer, optimizer.step, div_scale=2.0)
    else:
        optimizer.step(div_scale=2.0)
    return optimizer.state[weight]["exp_avg"].item()
