"""Epochs, best checkpoints, early stopping and hooks of whole runs, against the loop of one process."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import Case, load_cases
from tests.training.cells.harness.trained import RANKS, train_case
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.events.outcome import early_end_of
from workbench.run.reader import RunReader
from workbench.rundir import checkpoints
from workbench.telemetry import progress

PARTIAL = load_cases()["epochs_with_a_partial_last_batch"]
PLATEAU = load_cases()["schedule_on_plateau"]
#: its validation loss falls and then rises: the targets of the validation are others
TURNING = Case(
    flags={"steps": 40, "eval_every": 2, "save_every": 2, "keep": 1, "final_checkpoint": True},
    cell="""
import torch
from torch import nn

model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.linspace(-1, 1, 96).view(32, 3)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 3 + 2)
eval_dataset = torch.utils.data.TensorDataset(inputs[:7], inputs[:7, :1] * 0.5 + 1)
metrics = {"off": lambda outputs, batch: (outputs - batch[1]).abs().mean()}
criterion = nn.MSELoss()
""",
    plain="""
def validate():
    return {"loss": float(criterion(model(inputs[:7]), inputs[:7, :1] * 0.5 + 1))}

losses, norms = train(globals(), validate)
""",
)
RULE = "validation_loss has not improved for 3 evaluations"


def plain(pool: RankPool, case: Case, **more: Any) -> dict[str, Any]:
    options = case.options("1 rank") | more
    return pool.run(1, f"{RANKS}:plain", cell=case.cell, loop=case.plain, options=options)[0]


def trained(pool: RankPool, case: Case, plan: str, **more: Any) -> RunReader:
    run, failure = train_case(pool, case, plan, **more)
    assert not failure
    assert run is not None
    return run


def best_of(values: list[float]) -> tuple[int, float]:
    """Step and value of the lowest validation loss, one every two steps."""
    index = int(np.argmin(values))
    return 2 * (index + 1), values[index]


@pytest.mark.parametrize("case", [PARTIAL, PLATEAU], ids=["partial last batch", "plateau"])
@pytest.mark.parametrize(("first", "then"), [("1 rank", "ddp"), ("ddp", "1 rank")])
def test_it_resumes_within_an_epoch_under_another_number_of_ranks(
    case: Case, first: str, then: str, pool: RankPool
) -> None:
    right = plain(pool, case)["losses"]
    run = trained(pool, case, first, save_every=1)
    at = len(right) - 6
    again = trained(pool, case, then, resume=f"{run.path}@{at}")
    np.testing.assert_allclose(again.metrics()["loss"], right[at:], rtol=2e-4)
    np.testing.assert_allclose(again.metrics()["lr"], run.metrics()["lr"][at:], rtol=1e-6)
    assert again.last_step == run.last_step == len(right)


def test_an_epoch_goes_on_with_another_batch_size(pool: RankPool) -> None:
    """After 4 of 13 samples in batches of 4: 9 more in batches of 2, then two epochs of 7 batches."""
    run = trained(pool, PARTIAL, "1 rank", save_every=1)
    again = trained(pool, PARTIAL, "ddp", resume=f"{run.path}@1", batch_size=2)
    assert again.last_step == 1 + 5 + 7 + 7
    (begin,) = of_kind(again.store.table("events"), EventKind.DATA, "epochs")
    assert begin.fields == {"epochs": 3, "steps_per_epoch": 7, "done": 4 / 13, "steps": 20, "end_of_epochs": 20}
    now = progress.snapshot(again.store)
    assert (now.steps, now.epoch, now.fraction) == (20, "epoch 3 of 3", 1.0)


def test_what_comes_first_ends_it(pool: RankPool) -> None:
    run = trained(pool, PARTIAL, "1 rank", steps=5)
    assert run.last_step == 5
    assert progress.snapshot(run.store).epoch == "epoch 1.25 of 3"


@pytest.mark.parametrize("plan", ["1 rank", "ddp", "zero1"])
def test_a_rule_ends_it_where_one_process_would_and_the_best_checkpoint_stays(plan: str, pool: RankPool) -> None:
    losses = [found["loss"] for found in plain(pool, TURNING)["validations"]]
    step, value = best_of(losses)
    assert 2 < step < 30
    run = trained(pool, TURNING, plan, save_best="validation_loss", stop_when=RULE)
    assert run.last_step == step + 6
    assert early_end_of(run.store.table("events")).startswith(f"{RULE}: ")
    assert checkpoints.steps(run.path) == [step + 6]
    found = checkpoints.best_of(run.path)
    assert found is not None
    assert (found["step"], found["name"]) == (step, "validation_loss")
    assert found["value"] == pytest.approx(value, rel=2e-4)
    checkpoints.verify(checkpoints.find(run.path, "best"))
    again = trained(pool, TURNING, plan, resume=f"{run.path}@best", stop_when="", steps=step + 2)
    np.testing.assert_allclose(again.metrics()["loss"], run.metrics()["loss"][step : step + 2], rtol=2e-4)
    assert early_end_of(again.store.table("events")) == ""


def test_a_resumed_run_takes_the_best_checkpoint_over_and_goes_on_counting(pool: RankPool) -> None:
    options = {"save_best": "validation_loss", "stop_when": RULE, "keep": 0}
    whole = trained(pool, TURNING, "ddp", **options)
    found = checkpoints.best_of(whole.path)
    assert found is not None
    again = trained(pool, TURNING, "1 rank", resume=f"{whole.path}@{found['step'] + 2}", **options)
    assert again.last_step == whole.last_step
    assert checkpoints.best_of(again.path) == found
    earlier = trained(pool, TURNING, "1 rank", resume=f"{whole.path}@{found['step'] - 2}", **options)
    assert earlier.last_step == whole.last_step
    assert checkpoints.best_of(earlier.path)["step"] == found["step"]  # type: ignore[index]


@pytest.mark.parametrize("plan", ["1 rank", "ddp"])
def test_a_rule_about_the_training_loss(plan: str, pool: RankPool) -> None:
    losses = plain(pool, TURNING)["losses"]
    limit = float(np.mean(losses[9:11]))
    step = next(index for index, loss in enumerate(losses, start=1) if loss < limit)
    run = trained(pool, TURNING, plan, stop_when=f"loss < {limit}", eval_every=0, save_every=0)
    assert run.last_step == step


@pytest.mark.parametrize(
    ("more", "cell", "message"),
    [
        (
            {"save_best": "accuracy"},
            "",
            "--save-best: the validation has no metric 'accuracy': known: off, validation_loss",
        ),
        ({"stop_when": "of > 3"}, "", "--stop-when: the validation has no metric 'of': did you mean 'off'?"),
        ({"save_best": "accuracy"}, "eval_dataset = None\n", "but this run has no validation: define eval_dataset"),
        ({}, "lr_scheduler_every = 'week'\n", 'lr_scheduler_every is \'week\': it must be "step" or "epoch"'),
        ({}, "def on_step(loss): pass\n", "on_step must be a function of (step, values)"),
    ],
)
def test_what_no_validation_gives_is_refused_before_the_first_step(
    more: dict[str, Any], cell: str, message: str, pool: RankPool
) -> None:
    case = replace(TURNING, cell=TURNING.cell + cell)
    run, failure = train_case(pool, case, "ddp", **more)
    assert message in failure
    assert run is not None
    assert run.last_step == 0


@pytest.mark.parametrize("hook", ["on_step", "on_epoch"])
def test_an_error_in_a_hook_ends_the_run_with_its_name(hook: str, pool: RankPool) -> None:
    cell = f"\ndef {hook}(number, values):\n    if number == 2:\n        raise KeyError(sorted(values))\n"
    run, failure = train_case(pool, replace(PARTIAL, cell=PARTIAL.cell + cell), "ddp")
    assert f"raised in {hook}(2, values) of the cell" in failure
    assert "raise KeyError(sorted(values))" in failure
    assert run is not None
    assert run.last_step == {"on_step": 2, "on_epoch": 8}[hook]


def test_the_loss_of_an_epoch_is_that_of_one_process_also_after_a_resume(pool: RankPool, tmp_path: Path) -> None:
    right = plain(pool, PARTIAL)["losses"]
    means = [float(np.mean(right[first : first + 4])) for first in (0, 4, 8)]
    cell = f"""
def on_epoch(epoch, values):
    assert math.isclose(values["loss"], {means!r}[epoch - 1], rel_tol=2e-4), (epoch, values)
    assert values["validation_loss"] > 0 and values["step"] == 4 * epoch

def on_step(step, values):
    assert math.isclose(values["loss"], {right!r}[step - 1], rel_tol=2e-4), (step, values)
    assert ("validation_loss" in values) == (step > 4)
"""
    case = replace(PARTIAL, cell=f"import math\n{PARTIAL.cell}{cell}")
    run = trained(pool, case, "ddp", save_every=1)
    assert math.isclose(run.metrics()["loss"][0], right[0], rel_tol=2e-4)
    trained(pool, case, "1 rank", resume=f"{run.path}@6")
