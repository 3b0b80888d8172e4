"""A schedule that fails or has ended is said before the first step."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, SequentialLR

from workbench.engine.loop.schedule_ahead import check_schedule
from workbench.errors import ConfigError


def begun(scheduler: type, *arguments: object, steps: int = 0, **named: object):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    made = scheduler(optimizer, *arguments, **named)
    for _ in range(steps):
        optimizer.step()
        made.step()
    return optimizer, made


def test_a_schedule_that_raises_is_refused_at_its_last_step() -> None:
    optimizer, scheduler = begun(OneCycleLR, 0.5, 10, steps=6)
    before = (scheduler.state_dict(), optimizer.param_groups[0]["lr"])
    assert check_schedule(optimizer, scheduler, 6, 10) == ""
    with pytest.raises(ConfigError, match=r"fails after step 11.*--steps 10 or less"):
        check_schedule(optimizer, scheduler, 6, 12)
    assert (scheduler.state_dict(), optimizer.param_groups[0]["lr"]) == before
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    with pytest.raises(ValueError, match="Tried to step 11"):
        scheduler.step()


def test_a_schedule_that_has_no_step_left_is_refused_without_a_number_of_steps() -> None:
    optimizer, scheduler = begun(OneCycleLR, 0.5, 4, steps=4)
    with pytest.raises(ConfigError, match=r"fails after step 5: .*leave lr_scheduler out") as refused:
        check_schedule(optimizer, scheduler, 4, 8)
    assert "--steps" not in str(refused.value)


def test_a_schedule_that_has_ended_is_told() -> None:
    optimizer, scheduler = begun(LambdaLR, lambda step: max(0.0, 1 - step / 4), steps=4)
    assert "0 for all of steps 5 to 8" in check_schedule(optimizer, scheduler, 4, 8)
    optimizer, scheduler = begun(LambdaLR, lambda step: max(0.0, 1 - step / 4), steps=3)
    assert check_schedule(optimizer, scheduler, 3, 8) == ""
    assert check_schedule(*begun(CosineAnnealingLR, 4, steps=4), 4, 8) == "", "it rises again"


def test_a_sequence_of_schedules_is_tried() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    parts = [LambdaLR(optimizer, lambda step: 1.0), OneCycleLR(optimizer, 0.5, 4)]
    both = SequentialLR(optimizer, parts, [2])
    with pytest.raises(ConfigError, match="fails after step"):
        check_schedule(optimizer, both, 0, 20)
    assert optimizer.param_groups[0]["lr"] == both.get_last_lr()[0]
