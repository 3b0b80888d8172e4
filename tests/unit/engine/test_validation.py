"""What a cell may declare of its validation, and what is refused before a rank trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from workbench.core.config import ParallelPlan, TrainSpec
from workbench.core.mesh import Mesh
from workbench.engine.frameworks.torch_common.cells.metrics import Totals, added_up
from workbench.engine.frameworks.torch_common.cells.validation import evaluation_of
from workbench.engine.frameworks.torch_common.losses.terms import LossTerm
from workbench.errors import ConfigError

SPEC = TrainSpec(batch_size=4)
PIPELINE = TrainSpec(batch_size=4, plan=ParallelPlan(ranks=2, plugin="hybrid", pp=2, micro_batches=2))
DATA = [(torch.ones(2), 1)] * 5


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(DATA)


def loader(**more: Any) -> Any:
    return DataLoader(DATA, batch_size=2, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "spec", "told"),
    [
        ({"eval_dataset": []}, SPEC, "eval_dataset is empty"),
        ({"eval_dataset": iter(DATA)}, SPEC, "an __iter__ that starts anew"),
        ({"eval_dataset": 3}, SPEC, "eval_dataset is a int"),
        ({"eval_dataloader": iter(loader())}, SPEC, "gives its data once"),
        ({"eval_dataloader": 3}, SPEC, "cannot be iterated"),
        ({"eval_dataset": DATA, "eval_dataloader": loader()}, SPEC, "define one of"),
        ({"eval_dataset": DATA, "metrics": [max]}, SPEC, "metrics is a list"),
        ({"eval_dataset": DATA, "metrics": {"best": 1}}, SPEC, "metrics['best'] is a int"),
        ({"eval_dataset": DATA, "metrics": {"loss": max}}, SPEC, "is that of the validation loss"),
        ({"eval_dataset": DATA, "metrics": {"a": max}, "evaluate": lambda m, d: {}}, SPEC, "contradict each other"),
        ({"eval_dataset": DATA, "evaluate": lambda model, data: {}}, PIPELINE, "evaluate(model, loader) cannot be"),
        ({"sample": lambda model: "text"}, PIPELINE, "sample(model) cannot be called"),
        (
            {"eval_dataloader": loader(sampler=DistributedSampler(DATA, num_replicas=2, rank=0))},  # type: ignore[arg-type]
            SPEC,
            "repeats samples",
        ),
    ],
)
def test_what_is_refused(names: dict[str, Any], spec: TrainSpec, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        evaluation_of(names, spec)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("names", "has"),
    [
        ({}, False),
        ({"metrics": {"a": max}}, False),  # without data there is nothing to measure
        ({"evaluate": lambda model: {}, "sample": DATA[0]}, False),  # the cell's own business
        ({"eval_dataset": DATA}, True),
        ({"eval_dataset": Stream()}, True),
        ({"eval_dataset": range(3)}, True),
        ({"eval_dataloader": [torch.ones(2)]}, True),
        ({"eval_dataloader": loader(shuffle=True)}, True),
        ({"evaluate": lambda model, loader=None: {}}, True),
        ({"sample": lambda model, length=3: "text"}, True),
    ],
)
def test_what_counts_as_validation(names: dict[str, Any], has: bool) -> None:
    assert (evaluation_of(names, SPEC) is not None) is has


def test_an_epoch_is_read_as_often_as_it_is_asked_for() -> None:
    for names in ({"eval_dataset": DATA}, {"eval_dataset": Stream()}, {"eval_dataloader": loader(shuffle=True)}):
        found = evaluation_of(names, SPEC)
        assert found is not None
        source = found._data
        assert source is not None
        counts = [sum(len(x) for x, _ in source.once(0, 1)) for _ in range(3)]
        assert counts == [5, 5, 5]


def test_totals_of_uneven_parts_are_those_of_all_samples() -> None:
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([0, -100, 2, 1, -100, -100, 1])
    parts = []
    for rows in ([0, 1], [2, 3, 4], [5], [6]):
        part = Totals()
        loss = nn.functional.cross_entropy(scores[rows], labels[rows])
        part.add_loss(LossTerm(loss, float((labels[rows] != -100).sum())), len(rows))
        part.add_found("mean", scores[rows].mean(), len(rows))
        part.add_found("each", scores[rows].mean(1), len(rows))
        part.add_found("pair", (scores[rows].sum(), 3 * len(rows)), len(rows))
        parts.append(part)
    found = added_up(parts).values()
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(scores, labels)), rel=1e-12)
    for name in ("mean", "each", "pair"):
        assert found[name] == pytest.approx(float(scores.mean()), rel=1e-12)


def test_a_sum_stays_a_sum_and_what_is_not_a_number_is_kept() -> None:
    part = Totals()
    part.add_loss(LossTerm(torch.tensor(3.0), form="sum"), 2)
    part.add_loss(LossTerm(torch.tensor(4.0), form="sum"), 1)
    part.add_found("broken", float("nan"), 2)
    part.add_found("broken", 1.0, 2)
    found = added_up([part]).values()
    assert found["loss"] == 7.0
    assert found["broken"] != found["broken"]


@pytest.mark.parametrize("found", [torch.ones((), device="meta"), (torch.ones((), device="meta"), 4)])
def test_a_tensor_without_values_is_refused(found: Any) -> None:
    with pytest.raises(ConfigError, match="a tensor on the device 'meta', which has no values"):
        Totals().add_found("score", found, 4)


class Alone:
    """A strategy of one rank, as far as texts ask for it. ``told``: its warnings."""

    rank, mesh, coordinates = 0, Mesh(), Mesh().coordinates(0)

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self.tell = self.told.__setitem__

    def forward(self, batch: Any) -> Any:
        raise NotImplementedError

    def evaluated(self, batch: Any, *, outputs: bool = False) -> Any:
        raise NotImplementedError

    def evaluation(self) -> Any:
        return nullcontext(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("sample", "texts", "told"),
    [
        (lambda model: "one", ["one"], ""),
        (lambda model: ["one", 2], ["one", "2"], ""),
        (lambda model: 5, [], "sample(model): it returned a int: return a text or a list of texts (rank 0)"),
        (lambda model: 1 / 0, [], "sample(model): ZeroDivisionError: division by zero (rank 0)"),
    ],
)
def test_a_sample_that_fails_is_told_and_ends_no_training(
    sample: Callable[[Any], Any], texts: list[str], told: str
) -> None:
    evaluation, strategy = evaluation_of({"sample": sample}, SPEC), Alone()
    assert evaluation is not None and list(evaluation.texts(strategy)) == texts
    assert strategy.told.get("sample", "") == told
