"""Ranks that use Colossal-AI itself, to see what it does with and without the repairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.engine import boosted, models
from workbench.core.config import TrainSpec
from workbench.engine.frameworks.colossal import repairs
from workbench.engine.frameworks.colossal.ranks import joined


def _leave_out(names: Sequence[str]) -> None:
    repairs.REPAIRS = tuple(repair for repair in repairs.REPAIRS if repair.name not in names)


def sees_the_future(rank: int, ranks: int, directory: Path, *, without: Sequence[str] = ()) -> bool:
    """Whether the first logits of a tensor-parallel GPT-2 change with the last token (upstream's own defaults)."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin

    _leave_out(without)
    with joined(rank, ranks, directory, device_type="cpu"):
        plugin = HybridParallelPlugin(tp_size=ranks, pp_size=1, precision="fp32")
        network, *_ = Booster(plugin=plugin).boost(models.model("gpt2"))
        ids = torch.arange(16).repeat(2, 1)
        changed = ids.clone()
        changed[:, -1] += 1
        with torch.no_grad():
            first, second = (
                network(input_ids=tokens, labels=tokens, attention_mask=torch.ones_like(tokens)).logits[:, 0]
                for tokens in (ids, changed)
            )
        return not torch.equal(first, second)


def coordinators(rank: int, ranks: int, directory: Path, *, forget: bool = True) -> list[list[int]]:
    """[rank, world size] that Colossal-AI's coordinator tells in a group of all, then in a group of one."""
    from colossalai.cluster import DistCoordinator

    if not forget:
        repairs.forget_coordinator = lambda: None
        _leave_out(["coordinator"])
    found = []
    for own_rank, size, token in ((rank, ranks, "all"), (0, 1, f"alone-{rank}")):
        with joined(own_rank, size, directory, device_type="cpu", token=token):
            coordinator = DistCoordinator()
            found.append([coordinator.rank, coordinator.world_size])
    return found


def unlabelled(rank: int, ranks: int, directory: Path) -> list[int] | None:
    """Shape of the logits of a pipeline for a batch without labels; None on stages that are not the last."""
    spec = TrainSpec.from_options({"ranks": ranks, "plugin": "hybrid", "pp": ranks, "micro_batches": ranks})
    with joined(rank, ranks, directory, device_type="cpu"):
        strategy = boosted.prepared(rank, spec, "gpt2")
        found = strategy.forward({"input_ids": torch.arange(16).repeat(3, 1)})
        strategy.close()
    if found is None:
        return None
    assert found.loss is None
    return list(found.logits.shape)


def applied(rank: int, ranks: int, directory: Path, *, device_type: str, version: str = "0.5.0") -> list[str]:
    repairs.colossalai.__version__ = version
    return repairs.apply(device_type)


def layer_seeds(rank: int, ranks: int, directory: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """What the randomizer of a sharded layer draws, whether the rank's own generator goes on as it was, and how many
    stacks torch formatted for seeds of a GPU to come."""
    from colossalai.shardformer.layer.utils import Randomizer

    _leave_out(without)
    with joined(rank, ranks, directory, device_type="cpu"):
        before = torch.get_rng_state()
        with mock.patch("traceback.format_stack", return_value=[]) as stacks:
            randomizer = Randomizer(7)
        goes_on = torch.equal(before, torch.get_rng_state())
        drawn = []
        for with_cpu in (False, True, False):
            with randomizer.fork_rng(enable_cpu=with_cpu):
                drawn += torch.rand(2).tolist()
        return {"drawn": drawn, "goes_on": goes_on, "stacks": stacks.call_count}
