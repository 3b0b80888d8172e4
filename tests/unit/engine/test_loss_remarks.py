"""What is said about the average of a loss: where it is not that of one process, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from workbench.core.mesh import Mesh
from workbench.engine.base.strategy import untold
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.engine.frameworks.torch_common.losses.terms import WHOLE, Division, loss_term

WEIGHT = nn.Parameter(torch.randn(6, 4))
INPUTS = torch.randn(4, 6)
LABELS = torch.tensor([0, 1, 3, 2])
SOME_IGNORED = torch.tensor([0, -100, 3, -100])
OWN_NUMBERS = torch.arange(4)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0])
SCALES = nn.Parameter(torch.zeros(2))
CHOSEN = torch.tensor([True, False, False, True])


def scores() -> torch.Tensor:
    return INPUTS @ WEIGHT


def similarities() -> torch.Tensor:
    return scores() @ scores().T


def losses() -> torch.Tensor:
    return scores().square().mean(1)


def losses_of_one(number: int) -> torch.Tensor:
    return functional.smooth_l1_loss(scores()[number], INPUTS[number, :4])


def said_of(compute: Callable[[], Any], division: Division = WHOLE) -> set[str]:
    said: set[str] = set()
    with noted_losses():
        loss_term(compute, lambda name, text: said.add(name), samples=4, division=division)
    return said


SILENT: dict[str, Callable[[], Any]] = {
    "mean over samples": lambda: functional.mse_loss(scores(), INPUTS[:, :4]),
    "a mean of the cell's own": lambda: scores().square().mean(),
    "labels that all count": lambda: functional.cross_entropy(scores(), LABELS),
    "labels that all count, and something": lambda: functional.cross_entropy(scores(), LABELS) + scores().mean(),
    "ignored labels alone": lambda: functional.cross_entropy(scores(), SOME_IGNORED),
    "class weights": lambda: functional.cross_entropy(scores(), LABELS, weight=torch.arange(1.0, 5.0)),
    "probabilities": lambda: functional.cross_entropy(scores(), scores().detach().softmax(1)),
    "more classes than samples": lambda: functional.cross_entropy(scores()[:3], OWN_NUMBERS[:3]),
    "as many classes as samples": lambda: functional.cross_entropy(scores(), LABELS),
    "one sample of one class": lambda: functional.cross_entropy(scores()[:1, :1], OWN_NUMBERS[:1]),
    "attention below the last layer": lambda: (similarities().softmax(1) @ scores() @ WEIGHT.T).square().mean(),
    "products with fixed vectors": lambda: (scores() @ torch.randn(4, 4)).logsumexp(1).mean(),
    "products of a sample with itself": lambda: (scores() * scores().flip(1)).sum(1).sigmoid().log().mean(),
    "torch's sum": lambda: functional.mse_loss(scores(), INPUTS[:, :4], reduction="sum"),
    "sum and count": lambda: (functional.cross_entropy(scores(), SOME_IGNORED, reduction="sum"), 2),
    "ignored labels, scaled": lambda: 0.5 * functional.cross_entropy(scores(), SOME_IGNORED),
    "ignored labels and a penalty": lambda: (
        functional.cross_entropy(scores(), SOME_IGNORED) + 0.1 * WEIGHT.square().sum()
    ),
    "chosen elements": lambda: scores()[CHOSEN].square().mean(),
    "a masked mean": lambda: (scores().square() * CHOSEN[:, None]).sum() / (4 * CHOSEN.sum()),
    "a masked mean of samples": lambda: (scores().square().mean(1) * CHOSEN).sum() / CHOSEN.sum().clamp(min=1),
    "a masked mean by where": lambda: scores().square().mean(1).where(CHOSEN, 0).sum() / CHOSEN.sum(),
    "a weighted mean": lambda: (scores().square().mean(1) * WEIGHTS).sum() / (WEIGHTS.sum() + 1e-8),
    "a weighted mean by a product": lambda: torch.dot(losses(), WEIGHTS) / WEIGHTS.sum(),
    "a weighted mean by another product": lambda: (WEIGHTS @ losses()) / WEIGHTS.sum(),
    "a mean of samples that were taken one by one": lambda: (
        sum(losses_of_one(number) for number in range(len(INPUTS))) / len(INPUTS)
    ),
    "no weight": lambda: (scores().square().mean(1) * torch.zeros(4)).sum() / 1.0,
    "a sum": lambda: (scores() - INPUTS[:, :4]).square().sum(),
    "a part of torch's sum": lambda: 0.5 * functional.mse_loss(scores(), INPUTS[:, :4], reduction="sum"),
    "two sums": lambda: functional.mse_loss(scores(), INPUTS[:, :4], reduction="sum") - 0.5 * scores().exp().sum(),
    "a sum of what torch did not average": lambda: functional.mse_loss(scores(), INPUTS[:, :4], reduction="none").sum(),
    "averages of features, added up": lambda: scores().square().mean(0).sum(),
    "an average along the time, which comes first": lambda: scores().reshape(2, 4, 2).mean(0).tanh().mean(),
    "products with all tokens of a sample": lambda: scores().reshape(4, 2, 2).softmax(1).square().mean(),
    "a sum that is averaged": lambda: scores().square().sum() / 4,
    "torch's sum that is averaged": lambda: functional.mse_loss(scores(), INPUTS[:, :4], reduction="sum") / 4,
    "a penalty on weights": lambda: scores().square().mean() + 0.1 * WEIGHT.square().sum() + 0.1 * WEIGHT.norm(),
    "a sum of losses that were stacked": lambda: torch.stack([scores().mean(), scores().square().mean()]).sum(),
    "losses with a learned weight": lambda: torch.sum(
        torch.exp(-SCALES) * torch.stack([scores().mean(), scores().square().mean()]) + SCALES
    ),
    "labels that are their own numbers by chance": lambda: functional.cross_entropy(scores(), OWN_NUMBERS),
    "the same, of a hidden layer": lambda: functional.cross_entropy(scores().relu() @ WEIGHT.T[:, :4], OWN_NUMBERS),
}
TOLD: dict[str, tuple[set[str], Callable[[], Any]]] = {
    "ignored labels, and something added in place": (
        {"loss_by_samples"},
        lambda: functional.cross_entropy(scores(), SOME_IGNORED).add_(scores().mean()),
    ),
    "in-batch contrast": ({"contrastive_loss"}, lambda: functional.cross_entropy(similarities(), OWN_NUMBERS)),
    "in-batch contrast, both ways": (
        {"contrastive_loss"},
        lambda: (
            functional.cross_entropy(similarities(), OWN_NUMBERS)
            + functional.cross_entropy(similarities().T, OWN_NUMBERS)
        ),
    ),
    "in-batch contrast by nll_loss": (
        {"contrastive_loss"},
        lambda: functional.nll_loss(similarities().log_softmax(1), OWN_NUMBERS),
    ),
    "in-batch contrast, averaged by hand": (
        {"contrastive_loss"},
        lambda: functional.cross_entropy(similarities(), OWN_NUMBERS, reduction="none").mean(),
    ),
    "in-batch contrast by hand": (
        {"contrastive_loss"},
        lambda: 0.5 * (similarities().logsumexp(1) - similarities().diagonal()).mean(),
    ),
    "in-batch contrast by einsum": (
        {"contrastive_loss"},
        lambda: -torch.einsum("id,jd->ij", scores(), scores().tanh()).log_softmax(1).diagonal().mean(),
    ),
    "distances of each with each": (
        {"contrastive_loss"},
        lambda: torch.cdist(scores(), scores()).amax(1).mean(),
    ),
    "ignored labels and something": (
        {"loss_by_samples"},
        lambda: functional.cross_entropy(scores(), SOME_IGNORED) + 0.1 * scores().square().mean(),
    ),
    "chosen elements and something": (
        {"loss_by_samples"},
        lambda: scores().square().mean() + scores()[CHOSEN].square().mean(),
    ),
    "a mask and something": (
        {"loss_by_samples"},
        lambda: scores().square().mean() + (scores().square().mean(1) * CHOSEN).sum() / CHOSEN.sum(),
    ),
    "a sum and a mean": ({"loss_is_a_sum"}, lambda: scores().square().mean() + scores().square().sum()),
    "weights that add up to 1 in each batch": (
        {"loss_is_a_sum"},
        lambda: (losses().detach().softmax(0) * losses()).sum() * 1.0,
    ),
    "a sum and a penalty on weights": (
        {"loss_is_a_sum"},
        lambda: scores().square().sum() + 0.1 * WEIGHT.square().sum(),
    ),
    "a sum divided by another number": ({"loss_is_a_sum"}, lambda: scores().square().sum() / 1000),
    "a root of a mean": ({"loss_of_averages"}, lambda: 2 * functional.mse_loss(scores(), INPUTS[:, :4]).sqrt()),
    "a number divided by a mean": ({"loss_of_averages"}, lambda: 1 / scores().square().mean()),
    "a quotient of sums": (
        {"loss_of_averages"},
        lambda: 1 - (2 * (scores().sigmoid() * LABELS).sum() + 1) / (scores().sigmoid().sum() + 1),
    ),
    "deviations of features": ({"batch_statistics"}, lambda: (1 - scores().std(0)).relu().mean()),
    "samples minus their mean": ({"batch_statistics"}, lambda: (scores() - scores().mean(0)).square().mean()),
    "a model that normalises the batch": (
        {"batch_statistics"},
        lambda: functional.mse_loss((scores() / scores().norm(dim=0)).tanh(), INPUTS[:, :4]),
    ),
    "in-batch contrast of two views": (
        {"contrastive_loss"},
        lambda: functional.cross_entropy(
            similarities().masked_fill(torch.eye(4, dtype=torch.bool), -1e9), OWN_NUMBERS.roll(2)
        ),
    ),
    "differences of each with each": (
        {"contrastive_loss"},
        lambda: (scores()[:, None] - scores()[None]).square().sum(-1).amax(1).mean(),
    ),
    "similarities of each with each": (
        {"contrastive_loss"},
        lambda: functional.cosine_similarity(scores()[:, None], scores()[None], dim=-1).exp().mean(),
    ),
    "an average for each feature, by counts": (
        {"batch_statistics"},
        lambda: ((scores() * (INPUTS[:, :4] > 0)).sum(0) / (INPUTS[:, :4] > 0).sum(0).clamp(min=1)).mean() + 0.0,
    ),
    "samples chosen by the order of their losses": (
        {"batch_statistics"},
        lambda: torch.mean(losses()[losses().detach().argsort()[:2]]),
    ),
    "the worst samples": ({"batch_statistics"}, lambda: losses().topk(2).values.mean() + 0.0),
    "samples that count by their loss": (
        {"batch_statistics"},
        lambda: (losses().softmax(0) * losses()).sum() + 0.0,
    ),
}


#: said where other pieces hold other samples
TOLD_OF_PIECES: dict[str, tuple[str, Callable[[], Any]]] = {
    "a mean times the number of samples": ("loss_factor", lambda: losses().mean() * len(INPUTS)),
    "torch's mean times the number of samples": (
        "loss_factor",
        lambda: functional.mse_loss(scores(), INPUTS[:, :4]) * INPUTS.size(0),
    ),
    "a mean divided by the number of samples": ("loss_factor", lambda: losses().mean() / INPUTS.shape[0]),
    "a sum times the number of samples": ("loss_factor", lambda: losses().sum() * len(INPUTS)),
    "a mean times the number of chosen ones": ("loss_factor", lambda: losses()[CHOSEN].mean() * CHOSEN.sum().item()),
    "samples that are added up one by one": (
        "loss_is_a_sum",
        lambda: 0.5 * sum(losses_of_one(number) for number in range(len(INPUTS))),
    ),
    "weights divided by their mean": ("loss_weights", lambda: (losses() * (WEIGHTS / WEIGHTS.mean())).mean() + 0.0),
}


@pytest.mark.parametrize("name", TOLD_OF_PIECES)
@pytest.mark.parametrize("by_terms", [False, True])
def test_it_is_said_where_a_number_may_be_that_of_a_piece(name: str, by_terms: bool) -> None:
    expected, compute = TOLD_OF_PIECES[name]
    assert said_of(compute, Division(of_several=True, by_terms=by_terms)) == {expected}
    assert said_of(compute) == set()


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_said_of_an_average_that_is_right(name: str) -> None:
    assert said_of(SILENT[name]) == set()


#: what is right where each term counts by itself, and said where it does not
BY_TERMS = (
    "ignored labels and something",
    "chosen elements and something",
    "a mask and something",
    "a sum and a mean",
    "a sum and a penalty on weights",
)


@pytest.mark.parametrize("name", [*SILENT, *BY_TERMS])
def test_nothing_is_said_where_each_term_counts_by_itself(name: str) -> None:
    compute = SILENT[name] if name in SILENT else TOLD[name][1]
    assert said_of(compute, Division(of_several=True, by_terms=True)) == set()


def test_the_factors_of_terms_are_those_of_their_gradients() -> None:
    with noted_losses():
        terms: list[torch.Tensor] = []

        def loss() -> torch.Tensor:
            for compute in (losses, lambda: losses().exp(), lambda: losses().sin()):
                terms.append(compute()[CHOSEN].mean())
            terms.append(functional.cross_entropy(scores(), SOME_IGNORED, reduction="sum"))
            first, second, third, fourth = terms
            inner = -(first - 0.5 * second).sub(third, alpha=3) / torch.tensor(4.0)
            stacked = torch.stack([torch.rsub(inner, fourth, alpha=2), 1 - first]).sum()
            return 2 * stacked + WEIGHT.square().sum() + second.double()

        term = loss_term(loss, samples=4, division=Division(of_several=True, by_terms=True))
    assert {id(part.value) for part in term.parts} == {id(each) for each in terms}
    for part in term.parts:
        (expected,) = torch.autograd.grad(term.value, part.value, retain_graph=True)
        assert float(part.scale) == pytest.approx(float(expected))
    assert sorted(str(part.count) for part in term.parts) == ["2.0", "2.0", "2.0", "None"]


@pytest.mark.parametrize("division", [Division(of_several=True), Division(of_several=True, by_terms=True)])
def test_a_mean_over_nothing_is_0_where_other_pieces_hold_its_elements(division: Division) -> None:
    nothing = CHOSEN & ~CHOSEN
    ignored = torch.full_like(LABELS, -100)

    def loss() -> torch.Tensor:
        chosen = functional.mse_loss(scores()[nothing], INPUTS[nothing][:, :4])
        return losses().mean() + chosen + torch.mean(losses()[nothing]) + functional.cross_entropy(scores(), ignored)

    with noted_losses():
        value = loss_term(loss, samples=4, division=division).value
        assert value.item() == pytest.approx(losses().mean().item())
        assert torch.equal(*(torch.autograd.grad(each, WEIGHT)[0] for each in (value, losses().mean())))
        assert loss_term(loss, samples=4).value.isnan()


def test_a_factor_is_compared_over_pieces() -> None:
    said: list[str] = []
    for factors in ((1.0, 1.0), (0.3, 0.1 * 3), (1.0, 2.0)):
        tell = lambda name, text: said.append(f"{name} {factors}")  # noqa: E731, B023
        average = LossAverage(Mesh(), torch.device("cpu"), tell)
        average.begin([INPUTS, INPUTS])
        with noted_losses():
            for factor in factors:
                average.weighted(loss_term(lambda: factor * losses().mean(), tell, samples=4), 4)  # noqa: B023
    assert said == ["loss_factor (1.0, 2.0)"]


def loss_of(kind: str) -> torch.Tensor:
    if kind in ("some", "others"):
        return losses()[CHOSEN if kind == "some" else ~CHOSEN].mean()
    if kind == "all":
        return losses().mean()
    return functional.cross_entropy(scores(), LABELS, weight=WEIGHTS + (kind == "other classes"))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("some", "all", {"loss_terms"}),
        ("all", "classes", {"loss_factor", "loss_terms"}),
        ("classes", "other classes", {"loss_factor"}),
        ("some", "others", set()),
        ("all", "all", set()),
        ("classes", "classes", set()),
    ],
)
def test_it_is_said_where_pieces_average_over_different_things(first: str, second: str, expected: set[str]) -> None:
    said: set[str] = set()
    tell = lambda name, text: said.add(name)  # noqa: E731
    average = LossAverage(Mesh(), torch.device("cpu"), tell)
    average.begin([INPUTS, INPUTS])
    with noted_losses():
        for kind in (first, second):
            average.weighted(loss_term(lambda: loss_of(kind), tell, samples=4, division=average.division), 4)  # noqa: B023
    assert said == expected


@pytest.mark.parametrize("name", TOLD)
def test_it_is_said_where_the_average_is_another(name: str) -> None:
    expected, compute = TOLD[name]
    assert said_of(compute) == expected


def test_a_criterion_and_a_model_s_own_count_are_known() -> None:
    criterion = nn.CrossEntropyLoss(ignore_index=-100)
    assert said_of(lambda: criterion(scores(), SOME_IGNORED)) == set()
    with noted_losses():
        said: list[str] = []
        loss = lambda: 1.0 * functional.cross_entropy(scores(), SOME_IGNORED)  # noqa: E731
        term = loss_term(loss, lambda name, text: said.append(name), count_of=lambda loss: 2.0, samples=4)
    assert (term.count, said) == (2.0, [])


def test_only_the_first_three_steps_are_looked_at() -> None:
    average = LossAverage(Mesh(), torch.device("cpu"), untold)
    seen = []
    for _ in range(5):
        average.begin([INPUTS])
        seen.append(average.is_new)
    assert seen == [True, True, True, False, False]
