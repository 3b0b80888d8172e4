"""What context-parallel ranks do with sequences, dropout and generated text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.engine import split_models
from workbench.core.config import TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.errors import ConfigError


def _prepared(rank: int, spec: TrainSpec, name: str, settings: dict[str, Any]) -> Any:
    network = split_models.model(split_models.family_of_class(name), name, settings)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    workload = Workload(model=network, optimizer=optimizer, data=None, criterion=split_models.criterion)  # type: ignore[arg-type]
    strategy = load_strategy(spec)(spec, rank)
    strategy.check(spec, workload)
    strategy.prepare(workload)
    return strategy


def _spec(ranks: int, options: dict[str, Any]) -> TrainSpec:
    return TrainSpec.from_options({"ranks": ranks, "batch_size": split_models.BATCH, **options})


def too_short(rank: int, ranks: int, directory: Path, *, options: dict[str, Any]) -> str:
    """The refusal of a batch of single tokens."""
    spec = _spec(ranks, options)
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"), noted_losses():
        strategy = _prepared(rank, spec, "LlamaForCausalLM", {})
        ids = torch.ones(split_models.BATCH, 1, dtype=torch.long)
        try:
            strategy.forward_backward([{"input_ids": ids, "labels": ids}])
        except ConfigError as refusal:
            return str(refusal)
        finally:
            strategy.close()
    return ""


def dropped(rank: int, ranks: int, directory: Path, *, options: dict[str, Any]) -> dict[str, Any]:
    """Which elements the first layer keeps, the losses, and the number that is drawn next."""
    spec = _spec(ranks, options)
    kept: list[list[bool]] = []
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"), noted_losses():
        strategy = _prepared(rank, spec, "GPT2LMHeadModel", split_models.DROPOUT["gpt2"])
        drop = strategy.workload.model.transformer.drop
        handle = drop.register_forward_hook(lambda module, given, output: kept.append((output != 0).flatten().tolist()))
        losses = [
            strategy.forward_backward([split_models.batch("gpt2", "GPT2LMHeadModel", step, 2)]).item()
            for step in range(2)
        ]
        handle.remove()
        found = {"kept": kept, "losses": losses, "next": torch.rand(()).item()}
        strategy.close()
    return found


def generated(rank: int, ranks: int, directory: Path, *, options: dict[str, Any]) -> dict[str, list[int]]:
    """Tokens that the model generates while ranks share its sequences, and by itself."""
    spec = _spec(ranks, options)
    with joined_of(spec)(rank, ranks, directory, device_type="cpu"), noted_losses():
        strategy = _prepared(rank, spec, "LlamaForCausalLM", {})
        model = strategy.workload.model
        found = {"shared": _tokens(model)}
        strategy.close()
        found["whole"] = _tokens(model)
    return found


def _tokens(model: Any) -> list[int]:
    prompt = torch.arange(3, 9)[None]
    model.eval()
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=True,
    )
    return found[0].tolist()
