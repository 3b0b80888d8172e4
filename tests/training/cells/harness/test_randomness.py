"""Random numbers of model and loss: each replica's own, the same in a run with the same seed, continued by a resume."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import Case
from tests.training.cells.harness.trained import RANKS, train_case
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.run.reader import RunReader

DROPOUT = Case(
    cell="""
import random

import numpy as np
import torch
from torch import nn

model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
dataset = torch.utils.data.TensorDataset(torch.ones(64, 64), torch.ones(64, 1))

def loss_fn(model, batch):
    noise = torch.randn(()) + random.random() + np.random.random()
    return ((model(batch[0]) - batch[1]) ** 2).mean() + noise * model[1].bias.sum()
""",
    flags={"steps": 8},
)


def _losses(run: RunReader) -> pd.DataFrame:
    """Losses of every rank: a column per rank, a row per step."""
    metrics = run.metrics(per_rank=True)
    return metrics[metrics["rank"] >= 0].pivot_table(index="step", columns="rank", values="loss")


def _trained(pool: RankPool, plan: str, **more: object) -> RunReader:
    run, failure = train_case(pool, DROPOUT, plan, **more)
    assert not failure
    assert run is not None
    return run


def test_one_rank_draws_what_one_process_draws(pool: RankPool) -> None:
    right = pool.run(1, f"{RANKS}:plain", cell=DROPOUT.cell, loop="", options=DROPOUT.options("1 rank"))[0]
    np.testing.assert_allclose(_trained(pool, "1 rank").metrics()["loss"], right["losses"], rtol=2e-4)


@pytest.mark.parametrize("plan", ["ddp", "zero1", "zero2", "torch ddp"])
def test_replicas_draw_different_numbers_and_a_resume_goes_on_with_them(plan: str, pool: RankPool) -> None:
    run = _trained(pool, plan, save_every=4)
    losses = _losses(run)
    assert (losses[0] != losses[1]).all()
    pd.testing.assert_frame_equal(_losses(_trained(pool, plan)), losses)
    pd.testing.assert_frame_equal(_losses(_trained(pool, plan, resume=f"{run.path}@4")), losses.loc[5:])


#: what changes weights draws from the generators of the process: the update, a gradient hook, ``on_step``
NOISE_ON_WEIGHTS = Case(
    cell="""
import random

import numpy as np
import torch
from torch import nn

class Langevin(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.05 * torch.randn(parameter.shape))

model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))
model[1].weight.register_hook(lambda gradient: gradient * (1 + random.random()))
optimizer = Langevin(model.parameters(), lr=0.05)
dataset = torch.utils.data.TensorDataset(torch.ones(64, 8), torch.ones(64, 1))

@torch.no_grad()
def on_step(step, values):
    model[1].bias.add_(np.random.normal())

def loss_fn(model, batch):
    log("weights", model[1].weight.detach().square().sum() + model[1].bias.detach().sum(), reduce=None)
    return nn.functional.mse_loss(model(batch[0]), batch[1])
""",
    flags={"steps": 6},
)


@pytest.mark.parametrize("plan", ["ddp", "torch ddp"])
def test_noise_on_weights_is_the_same_on_all_ranks_and_after_a_resume(plan: str, pool: RankPool) -> None:
    def weights(**more: object) -> tuple[RunReader, pd.DataFrame]:
        run, failure = train_case(pool, NOISE_ON_WEIGHTS, plan, **more)
        assert not failure
        assert run is not None
        return run, run.values().pivot_table(index="step", columns="rank", values="value")

    run, values = weights(save_every=3)
    assert (values[0] == values[1]).all()
    assert values[0].nunique() == 6
    assert (_losses(run)[0] != _losses(run)[1]).all(), "dropout is each rank's own"
    pd.testing.assert_frame_equal(weights(resume=f"{run.path}@3")[1], values.loc[4:])


#: a loss whose noise comes from generators that the cell made, and a dataset that draws from one of them too
OWN_GENERATORS = Case(
    cell="""
import random
import numpy as np
import torch
from torch import nn

noise = torch.Generator().manual_seed(3)
both = random.Random(4)

class Net(nn.Linear):
    rng = np.random.default_rng(5)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.ones(4), torch.full((1,), both.random())

model = Net(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
dataset = Data()

def loss_fn(model, batch):
    log("target", batch[1].sum(), reduce=None)
    log("torch", torch.rand((), generator=noise), reduce=None)
    log("numpy", model.rng.random(), reduce=None)
    log("python", both.random(), reduce=None)
    return nn.functional.mse_loss(model(batch[0]), batch[1])
""",
    flags={"steps": 6},
)


def test_generators_of_the_cell_are_those_of_a_replica_and_are_kept(pool: RankPool) -> None:
    def drawn(**more: object) -> tuple[RunReader, pd.DataFrame]:
        run, failure = train_case(pool, OWN_GENERATORS, "ddp", **more)
        assert not failure
        assert run is not None
        assert not [event for event in of_kind(run.store.table("events"), EventKind.WARNING)]
        return run, run.values().pivot_table(index="step", columns=["name", "rank"], values="value")

    run, values = drawn(save_every=3)
    numbers = values.to_numpy().ravel()
    assert len(set(numbers)) == numbers.size == 6 * 8
    pd.testing.assert_frame_equal(drawn(resume=f"{run.path}@3")[1], values.loc[4:])
