"""Parameter groups keep their own rates while somebody turns the rate and a schedule goes on below."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workbench.engine.loop.learning_rate import LearningRate


def optimizer() -> torch.optim.SGD:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": weights[:1], "lr": 0.4}, {"params": weights[1:]}], lr=0.1)


SCHEDULES: dict[str, Any] = {
    "step": lambda chosen: torch.optim.lr_scheduler.ExponentialLR(chosen, 0.5),
    "epoch": lambda chosen: torch.optim.lr_scheduler.StepLR(chosen, 1, gamma=0.5),
    "evaluation": lambda chosen: torch.optim.lr_scheduler.ReduceLROnPlateau(chosen, patience=0, factor=0.5),
}


def rates(of: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in of.param_groups]


def advance(lr: LearningRate, every: str) -> None:
    if every == "step":
        lr.advance()
    else:
        lr.advance_schedule(*([1.0] if every == "evaluation" else []))


@pytest.mark.parametrize("every", SCHEDULES)
def test_a_factor_is_laid_over_every_group(every: str) -> None:
    plain, turned = optimizer(), optimizer()
    schedule, lr = SCHEDULES[every](plain), LearningRate(turned, SCHEDULES[every](turned), every)
    for number in range(4):
        plain.step()
        schedule.step(*([1.0] if every == "evaluation" else []))
        turned.step()
        if every != "step":
            before = rates(turned)
            lr.advance()
            assert rates(turned) == before
        advance(lr, every)
        if number == 1:
            lr.set("x0.5")
        factor = 0.5 if number >= 1 else 1.0
        assert rates(turned) == pytest.approx([factor * rate for rate in rates(plain)])
    lr.set(0.2)
    assert rates(turned)[0] / rates(turned)[1] == pytest.approx(4)
    lr.set("schedule")
    assert rates(turned) == pytest.approx(rates(plain))


@pytest.mark.parametrize("every", SCHEDULES)
def test_a_factor_survives_a_checkpoint(every: str) -> None:
    first, again = optimizer(), optimizer()
    schedules = SCHEDULES[every](first), SCHEDULES[every](again)
    lr, restored = (LearningRate(*each, every) for each in zip((first, again), schedules, strict=True))
    first.step()
    advance(lr, every)
    lr.set("x3")
    schedules[1].load_state_dict(schedules[0].state_dict())
    again.load_state_dict(first.state_dict())
    restored.restore(lr.state())
    for one, schedule in ((first, lr), (again, restored)):
        one.step()
        advance(schedule, every)
    assert rates(first) == pytest.approx(rates(again))
