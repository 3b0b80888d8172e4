"""A packed data set in a cell: the losses of one process over the same samples, through runs on 1, 2, 4 and 3 ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import Case
from tests.training.cells.harness.trained import train_case, train_plainly
from tests.unit.tokens.packed import packed

CELL = """
import torch
from torch import nn
from workbench import TokenDataset, TokenMixture

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(257, 16)
        self.head = nn.Linear(16, 257)
    def forward(self, ids):
        return self.head(self.embed(ids).cumsum(1).tanh())

model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
texts = TokenDataset({directory!r}, 12, crossing=False)
dataset = {dataset}

def loss_fn(model, batch):
    outputs = model(batch["input_ids"])[:, :-1]
    labels = batch["labels"][:, 1:]
    return nn.functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="sum"), (labels != -100).sum()
"""
MIXED = "TokenMixture({{'long': TokenDataset({directory!r}, 12), 'one': texts}}, {{'long': 0.25, 'one': 0.75}})"
PLAIN = """
order = [
    number
    for epoch in range(9)
    for number in dataset.sample_order(spec.seed, epoch, True)[: len(dataset) // spec.batch_size * spec.batch_size]
]
for step in range(spec.steps):
    batch = dataset.read_batch(order[step * spec.batch_size : (step + 1) * spec.batch_size])
    total, count = loss_fn(model, batch)
    loss = total / count
    optimizer.zero_grad()
    loss.backward()
    losses.append(loss.item())
    optimizer.step()
"""


@pytest.mark.parametrize("dataset", ["texts", MIXED])
def test_a_run_goes_on_with_the_same_samples_on_other_ranks(pool: RankPool, tmp_path: Path, dataset: str) -> None:
    directory = str(packed(tmp_path, [f"text {number}: {'x' * (number * 7 % 23)}" for number in range(40)]))
    cell = CELL.format(directory=directory, dataset=dataset.format(directory=directory))
    case = Case(cell=cell, flags={"steps": 20, "batch_size": 12, "shuffle": True}, plain=PLAIN)
    right = train_plainly(pool, case)["losses"]
    assert len(right) == 20
    resume = ""
    for plan, ranks, begin, end in (("1 rank", 1, 0, 4), ("ddp", 2, 4, 9), ("torch ddp", 4, 9, 13), ("ddp", 3, 13, 20)):
        run, failure = train_case(
            pool, case, plan, ranks=ranks, steps=end, save_every=end, **({"resume": resume} if resume else {})
        )
        assert run is not None and not failure, failure
        np.testing.assert_allclose(run.metrics()["loss"], right[begin:end], rtol=2e-4)
        resume = f"{run.path}@{end}"


def test_data_of_another_length_are_told(pool: RankPool, tmp_path: Path) -> None:
    directory = str(packed(tmp_path, [f"text {number}" for number in range(40)]))
    cell = CELL.format(directory=directory, dataset="texts")
    flags = {"steps": 4, "batch_size": 12, "save_every": 2}
    run, failure = train_case(pool, Case(cell=cell, flags=flags), "1 rank")
    assert run is not None and not failure, failure
    shorter = cell.replace(", 12, crossing", ", 6, crossing")
    resumed, failure = train_case(pool, Case(cell=shorter, flags=flags), "ddp", resume=f"{run.path}@2")
    assert resumed is not None and not failure, failure
    events = resumed.events().query("kind == 'warning' and name == 'other_data'")
    assert set(events["value"].str[:27]) == {"the data set has 80 samples"}, events
