"""Small models, batches and losses made at random: every plan trains them as one process does."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import Case
from tests.training.cells.harness.trained import RANKS, train_case

_ACTIVATIONS = ("nn.ReLU()", "nn.Tanh()", "nn.GELU()", "nn.SiLU()", "nn.Identity()")
_OPTIMIZERS = ("SGD(p, lr=0.05, momentum=0.9)", "AdamW(p, lr=0.01)", "RMSprop(p, lr=0.002)", "Adagrad(p, lr=0.02)")
_LOSSES = (
    "nn.CrossEntropyLoss(ignore_index=0)",
    "nn.CrossEntropyLoss(weight=torch.arange(1.0, 5.0), label_smoothing=0.2)",
    "nn.CrossEntropyLoss(reduction='sum')",
    "lambda outputs, target: ((outputs.softmax(1) - nn.functional.one_hot(target, 4)) ** 2).mean()",
)


def _random_case(seed: int) -> Case:
    """A classifier of 4 classes over rows of 6 numbers; a loader whose last batch is smaller, or a dataset."""
    draw = np.random.default_rng(seed)
    widths = [6, *draw.integers(1, 9, size=draw.integers(1, 4)).tolist()]
    layers = [
        f"nn.Linear({first}, {second}), nn.LayerNorm({second}), {draw.choice(_ACTIVATIONS)}"
        for first, second in pairwise(widths)
    ]
    samples, batch = int(draw.integers(12, 30)), int(draw.integers(3, 8))
    loads = draw.random() < 0.5
    data = f"DataLoader(samples, batch_size={batch})" if loads else "samples"
    cell = f"""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential({", ".join(layers)}, nn.Linear({widths[-1]}, 4))
p = model.parameters()
optimizer = torch.optim.{draw.choice(_OPTIMIZERS)}
samples = TensorDataset(torch.randn({samples}, 6), torch.randint(0, 4, ({samples},)))
{"dataloader" if loads else "dataset"} = {data}
criterion = {draw.choice(_LOSSES)}
"""
    return Case(cell=cell, flags={"steps": 6})


@pytest.mark.parametrize("seed", range(8))
def test_every_plan_trains_as_one_process(seed: int, pool: RankPool) -> None:
    case = _random_case(seed)
    arguments = {"cell": case.cell, "loop": case.plain, "options": case.options("1 rank")}
    right = pool.run(1, f"{RANKS}:plain", **arguments)[0]
    for plan in ("ddp", "zero1", "zero2", "accumulate 2"):
        run, failure = train_case(pool, case, plan)
        assert not failure, (plan, case.cell)
        assert run is not None
        np.testing.assert_allclose(run.metrics()["loss"], right["losses"], rtol=1e-3, atol=1e-6, err_msg=case.cell)
