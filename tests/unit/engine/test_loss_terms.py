"""Terms of a loss that count by themselves: where each is made, and what it is an average over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.unit.engine.test_loss_remarks import CHOSEN, INPUTS, LABELS, SOME_IGNORED, WEIGHT, losses, scores
from workbench.core.mesh import Mesh
from workbench.engine.base.strategy import untold
from workbench.engine.frameworks.torch_common.losses import average as average_of_losses
from workbench.engine.frameworks.torch_common.losses.average import LossAverage
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.engine.frameworks.torch_common.losses.terms import Division, LossTerm, loss_term


def helper(chosen: torch.Tensor) -> torch.Tensor | float:
    return losses()[chosen].mean() if chosen.any() else 0.0


def sites_of(compute: Callable[[], Any]) -> tuple[list[int], tuple[int, ...]]:
    with noted_losses():
        term = loss_term(compute, samples=4, division=Division(of_several=True, by_terms=True))
    return [part.site for part in term.parts] or [term.site], term.repeated


def test_terms_have_the_same_site_on_a_rank_that_lacks_others() -> None:
    nothing = CHOSEN & ~CHOSEN

    def of_calls(*chosen: torch.Tensor) -> Any:
        first, second, third = chosen
        return helper(first) + helper(second) + losses().mean() + helper(third)

    def of_loop(*chosen: torch.Tensor) -> Any:
        return sum(helper(each) for _, each in enumerate(chosen))

    def of_tensors(*chosen: torch.Tensor) -> Any:
        return sum(helper(each) for each in chosen)

    for compute in (of_calls, of_loop):
        for lacks in (None, 0, 1, 2):
            held = [nothing if number == lacks else CHOSEN for number in range(3)]
            found, repeated = sites_of(lambda: compute(*held))  # noqa: B023
            if lacks is None:
                whole = found
                assert len(set(whole)) == 3
                continue
            assert set(found) < set(whole) and len(found) == 2 and not repeated
    assert len(sites_of(lambda: of_tensors(CHOSEN, ~CHOSEN, CHOSEN))[1]) == 2, "told apart by their order alone"


@pytest.mark.parametrize("weight", [torch.tensor(0), 0, torch.zeros(())])
def test_a_quotient_by_0_is_0_where_it_is_an_average_over_nothing(weight: Any) -> None:
    nothing = CHOSEN & ~CHOSEN
    division = Division(of_several=True, by_terms=True)
    with noted_losses():
        for compute in (
            lambda: (losses() * nothing).sum() / weight,
            lambda: losses()[nothing].sum().div(weight),
            lambda: torch.div(functional.cross_entropy(scores(), LABELS * 0 - 100, reduction="sum"), weight),
        ):
            term = loss_term(lambda: compute() + losses().mean(), samples=4, division=division)  # noqa: B023
            assert term.value.item() == pytest.approx(losses().mean().item())
            assert [part.count for part in term.parts] == [0.0]
            assert torch.equal(*(torch.autograd.grad(each, WEIGHT)[0] for each in (term.value, losses().mean())))
            assert loss_term(compute, samples=4).value.isnan(), "in one process"
        for wrong in (lambda: losses().mean() / weight, lambda: (losses().sum() / weight, 3)):
            assert loss_term(wrong, samples=4, division=division).value.isnan(), "no average"


def test_a_loss_that_was_changed_in_place_is_no_mean_of_torch_s() -> None:
    def loss() -> torch.Tensor:
        loss = functional.cross_entropy(scores(), SOME_IGNORED)
        loss += losses().mean()
        return loss

    with noted_losses():
        term = loss_term(loss, samples=4, division=Division(of_several=True, by_terms=True))
        assert (
            term.count is None and loss_term(lambda: functional.cross_entropy(scores(), SOME_IGNORED), samples=4).count
        )
        with torch.inference_mode():
            assert loss_term(lambda: functional.cross_entropy(scores(), SOME_IGNORED), samples=4).count == 2.0
    assert all(id(part.value) != id(term.value) for part in term.parts), "what it was before is not known any more"


def test_ranks_agree_once_on_a_mean_whose_place_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[int] = []
    monkeypatch.setattr(average_of_losses, "all_reduce_uncounted", lambda total: sums.append(total.numel()))
    average = LossAverage(Mesh(dp=2), torch.device("cpu"), untold)
    for agreed in (3, 4):  # the other rank has nothing: a sum of what terms count, and at first of their places
        average.begin([INPUTS])
        loss = average.weighted(LossTerm(losses().mean(), 3.0), 4)
        assert loss.item() == pytest.approx(2 * losses().mean().item()) and len(sums) == agreed
