"""What the tests of verification share: cells, trainings on the ranks of a pool, and errors that are planted there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.engine.rank_pool import RankPools
from workbench.core.config import TrainSpec
from workbench.errors import ConfigError
from workbench.run import verify
from workbench.run.reader import RunReader
from workbench.run.resolve import resolve
from workbench.rundir import directory as run_directory
from workbench.verification.result import Verification

STEPS = 3
MLP = """
import torch
torch.manual_seed(1)
model = torch.nn.Sequential(
    torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 3)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x = torch.randn(64, 8)
dataset = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
criterion = torch.nn.CrossEntropyLoss()
"""
KERAS = """
import keras, numpy as np
keras.utils.set_random_seed(1)
model = keras.Sequential([
    keras.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.LayerNormalization(),
    keras.layers.Dense(3),
])
optimizer = keras.optimizers.AdamW(1e-2)
x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
dataset = list(zip(x, (x.sum(1) > 0).astype("int64")))
mean = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
loss_fn = lambda model, batch: mean(batch[1], model(batch[0]))
"""
_TOKENS = """
import torch, transformers
torch.manual_seed(1)
{model}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
ids = (torch.arange(64)[:, None] * 5 + torch.arange(12) * torch.arange(1, 65)[:, None]) % 61
dataset = [{{"input_ids": row, "labels": row}} for row in ids]
criterion = lambda outputs, batch: outputs.loss
"""
LLAMA = _TOKENS.format(
    model="""
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32))
"""
)
GPT2 = _TOKENS.format(
    model="""
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
    vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=32))
"""
)
#: with a mask of ones: sharded by Colossal-AI without its repair, attention then loses the causal one
MASKED_GPT2 = GPT2.replace('"labels": row}', '"labels": row, "attention_mask": torch.ones_like(row)}')


class Verifier:
    """Verifies cells on the ranks of a pool. Trainings of a reference are made once for each cell and options."""

    def __init__(self, pool: RankPools) -> None:
        self._pool = pool
        self._known: dict[Any, RunReader] = {}

    def __call__(self, cell: str, plant: str = "", against: str = "single", **options: Any) -> Verification:
        given = {"batch_size": 8, "steps": STEPS, "ranks": 2, **options}
        request = resolve(given, cell=cell, default_ranks=2)
        spec = verify._short(request.spec, STEPS, cell)
        path = run_directory.create(spec, request.cell)
        planned = verify.trainings(path, spec, path, against)
        runs = [self._trained(path, training, cell, plant) for training in planned]
        return verify.compare(runs, planned, against)

    def _trained(self, path: Path, training: verify.Trained, cell: str, plant: str) -> RunReader:
        is_plan = training.path == path
        key = (cell, _of(training.spec), training.request)
        if not is_plan and key in self._known:
            return self._known[key]
        verify.make(training, path)
        ranks = training.spec.plan.ranks
        planted = plant if is_plan else ""
        kept_for = "" if planted else "verification"  # errors are planted in ranks that end
        outcome = self._pool.run(
            ranks,
            "tests.engine.verified:train",
            on_ranks_of=training.spec.plan.framework,
            run=str(training.path),
            plant=planted,
            kept_for=kept_for,
        )[0]
        if '"ConfigError"' in outcome:
            raise ConfigError(outcome)
        assert '"finished"' in outcome, outcome
        run = RunReader(training.path)
        self._known[key] = run
        return run


def _of(spec: TrainSpec) -> tuple[Any, ...]:
    return tuple(sorted((name, str(value)) for name, value in spec.options().items() if name != "name"))


def train(rank: int, ranks: int, directory: Path, *, run: str, plant: str) -> str:
    """Train a run directory on this rank, with an error in it."""
    from workbench.engine.entry import train as train_run

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    if plant:
        PLANTS[plant](rank)
    return train_run(run)


def _plant_in_reduction(change: Callable[[Any], None]) -> None:
    """``change(strategy)`` is called after gradients are reduced."""
    from workbench.engine.frameworks.colossal.strategy import ColossalStrategy

    original = ColossalStrategy.forward_backward

    def forward_backward(self: Any, pieces: Any) -> Any:
        loss = original(self, pieces)
        change(self)
        return loss

    ColossalStrategy.forward_backward = forward_backward  # type: ignore[method-assign]  # of this process alone


def _scale_twice(rank: int) -> None:
    _plant_in_reduction(lambda strategy: strategy.plan.scale_gradients(0.5))


def _accumulation(rank: int) -> None:
    _plant_in_reduction(lambda strategy: strategy.plan.scale_gradients(2.0))


def _not_reduced(rank: int) -> None:
    from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction

    DdpReduction.finish = lambda self: None  # type: ignore[method-assign]


def _layer_norm(rank: int) -> None:
    """Each tensor-parallel rank ends with a part of one layer norm's gradient, as where nothing sums it."""

    def keep_a_part(strategy: Any) -> None:
        gradient = dict(strategy.module.named_parameters())["transformer.h.1.ln_1.weight"].grad
        gradient[rank::2] *= 0.25
        gradient[1 - rank :: 2] *= 0.75

    _plant_in_reduction(keep_a_part)


def _causal_mask(rank: int) -> None:
    from workbench.engine.frameworks.colossal import repairs

    repairs.REPAIRS = tuple(repair for repair in repairs.REPAIRS if repair.name != "causal-mask")


def _stale_copy(rank: int) -> None:
    """After its second update rank 1 goes on with the first layer as it was."""
    from workbench.engine.frameworks.colossal.strategy import ColossalStrategy

    original, steps = ColossalStrategy.step, iter(range(1, 100))

    def step(self: Any) -> bool:
        weight = dict(self.module.named_parameters())["_trained_model.0.weight"]
        before = weight.detach().clone()
        done = original(self)
        if rank == 1 and next(steps) == 2:
            weight.data.copy_(before)
        return done

    ColossalStrategy.step = step  # type: ignore[method-assign]


def _keys_not_summed(rank: int) -> None:
    """Each context-parallel rank keeps the gradient of keys and values that its own queries give."""
    from workbench.engine.frameworks.torch.context.positions import Positions

    Positions.summed = Positions.own  # type: ignore[method-assign]


def _no_causal_mask(rank: int) -> None:
    """Context-parallel ranks attend to all positions."""
    from workbench.engine.frameworks.torch.context import body

    body._causal = lambda mask, positions, dtype: mask.new_zeros((), dtype=dtype).expand(  # type: ignore[assignment]
        1, 1, positions.last - positions.first, positions.total
    )


PLANTS: dict[str, Callable[[int], None]] = {
    "scale 1/dp twice": _scale_twice,
    "accumulation": _accumulation,
    "not reduced over dp": _not_reduced,
    "layer norm": _layer_norm,
    "causal mask": _causal_mask,
    "stale copy": _stale_copy,
    "keys not summed over cp": _keys_not_summed,
    "no causal mask over cp": _no_causal_mask,
}
