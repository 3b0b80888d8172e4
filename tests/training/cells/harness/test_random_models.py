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
_NORMS = ("nn.LayerNorm({0})", "nn.GroupNorm(1, {0})", "nn.utils.parametrizations.weight_norm(nn.Linear({0}, {0}))")
#: losses of outputs [n, 4] and labels [n] in 0 .. 3; those with several terms are of unequal weights
_LOSSES = (
    "nn.CrossEntropyLoss(ignore_index=0)",
    "nn.CrossEntropyLoss(weight=torch.arange(1.0, 5.0), label_smoothing=0.2)",
    "nn.CrossEntropyLoss(reduction='sum')",
    "lambda outputs, target: ((outputs.softmax(1) - nn.functional.one_hot(target, 4)) ** 2).mean()",
    "lambda outputs, target: {3} * outputs[target != {0}].square().mean()",
    "lambda outputs, target: (outputs.logsumexp(1) * (target > {1})).sum() / (target > {1}).sum().clamp(min=1)",
)
_TWO_TERMS = (
    "lambda outputs, target: {3} * nn.functional.cross_entropy(outputs, target, ignore_index={0})"
    " + outputs[target == {1}].square().mean() - {2} * outputs.tanh().mean()",
    "lambda outputs, target: nn.functional.cross_entropy(outputs, target)"
    " + {2} * nn.functional.huber_loss(outputs[:, 0], target.float(), reduction='sum')"
    " + 0.01 * sum(weight.square().sum() for weight in model.parameters())",
)
_INPUTS = {
    "rows": "torch.randn({n}, 6)",
    "images": "torch.randn({n}, 2, 5, 5)",
    "texts": "torch.randint(0, 9, ({n}, 5))",
}
#: kind of input -> modules that make rows of 6 numbers of a batch of it
_FIRST = {
    "rows": ("Residual(nn.Linear(6, 6))", "Unused(nn.Linear(6, 6))", "Shared(nn.Linear(6, 6))"),
    "images": (
        "nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 6))",
        "nn.Sequential(nn.Conv2d(2, 4, 2, groups=2, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 6))",
    ),
    "texts": (
        "nn.Sequential(nn.Embedding(9, 6, padding_idx=0), Attention(), Mean())",
        "nn.Sequential(nn.EmbeddingBag(9, 6), nn.Linear(6, 6))",
        "nn.Sequential(nn.Embedding(9, 6), Last(nn.GRU(6, 6, batch_first=True)))",
    ),
}
_MODULES = """
class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.spare = inner, nn.Parameter(torch.ones(3), requires_grad=type(self) is Unused)

class Residual(Wrapped):
    def forward(self, x):
        return x + self.inner(x).tanh()

class Unused(Wrapped):
    def forward(self, x):
        return self.inner(x) if x.sum() > -1e9 else x * self.spare.sum()

class Shared(Wrapped):
    def forward(self, x):
        return nn.functional.linear(self.inner(self.inner(x).tanh()), self.inner.weight)

class Last(Wrapped):
    def forward(self, x):
        return self.inner(x)[0][:, -1]

class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True)
    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]
"""


def _random_case(seed: int) -> Case:
    """A classifier of 4 classes over rows, images or texts; a loader whose last batch is smaller, or a dataset."""
    draw = np.random.default_rng(seed)
    kind = list(_INPUTS)[seed % 3]
    widths = [6, *draw.integers(2, 9, size=draw.integers(1, 3)).tolist()]
    layers = [
        f"nn.Linear({first}, {second}), {draw.choice(_NORMS).format(second)}, {draw.choice(_ACTIVATIONS)}"
        for first, second in pairwise(widths)
    ]
    batch = int(draw.integers(5, 9))
    samples = batch * int(draw.integers(2, 4)) + batch - 1  # each batch holds every label, which a share may lack
    loads = draw.random() < 0.5
    data = f"DataLoader(samples, batch_size={batch})" if loads else "samples"
    loss = str(draw.choice(_TWO_TERMS if seed % 2 else _LOSSES))
    numbers = [*draw.permutation(4)[:2], *draw.uniform(0.1, 2, size=2).round(2)]
    cell = f"""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
{_MODULES}
model = nn.Sequential({draw.choice(_FIRST[kind])}, {", ".join(layers)}, nn.Linear({widths[-1]}, 4))
p = [each for each in model.parameters() if each.requires_grad]
optimizer = torch.optim.{draw.choice(_OPTIMIZERS)}
samples = TensorDataset({_INPUTS[kind].format(n=samples)}, torch.arange({samples}) % 4)
{"dataloader" if loads else "dataset"} = {data}
criterion = {loss.format(*numbers)}
"""
    return Case(cell=cell, flags={"steps": 4})


@pytest.mark.parametrize("seed", range(8))
def test_every_plan_trains_as_one_process(seed: int, pool: RankPool) -> None:
    case = _random_case(seed)
    arguments = {"cell": case.cell, "loop": case.plain, "options": case.options("1 rank")}
    right = pool.run(1, f"{RANKS}:plain", **arguments)[0]
    # a loss of two terms is right where each replica has one piece of the batch; elsewhere it is told
    for plan in ("ddp", "zero1" if seed % 4 < 2 else "zero2", "torch ddp" if seed % 2 else "accumulate 2"):
        run, failure = train_case(pool, case, plan)
        assert not failure, (plan, failure, case.cell)
        assert run is not None
        np.testing.assert_allclose(
            run.metrics()["loss"], right["losses"], rtol=1e-3, atol=1e-6, err_msg=f"{plan}\n{case.cell}"
        )
