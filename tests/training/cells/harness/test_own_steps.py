"""Cells with a ``train_step``: steering, checkpoints, numbers that are not finite, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells import steps_gan, steps_sam
from tests.training.cells.harness.case import Case
from tests.training.cells.harness.steps import step_case
from tests.training.cells.harness.trained import train_case, train_plainly
from workbench.core.records import EventKind
from workbench.events.decode import of_kind
from workbench.run.reader import RunReader

SCRIPTED = "tests.training.cells.harness.step_ranks:train"

TWO = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(2, 1)})
optimizer = {
    "a": torch.optim.SGD(model["a"].parameters(), lr=0.1, momentum=0.9), "b": torch.optim.Adam(model["b"].parameters())
}
inputs = torch.randn(20, 3)
dataloader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=5)

def train_step(model, optimizer, batch):
    for each in optimizer.values():
        each.zero_grad()
    loss = (model["b"](model["a"](batch[0])) - batch[1]).square().mean()
    loss.backward()
    for each in optimizer.values():
        each.step()
    return loss
"""


def trained(pool: RankPool, case: Case, plan: str = "ddp", **more: Any) -> RunReader:
    run, failure = train_case(pool, case, plan, **more)
    assert not failure
    assert run is not None
    return run


def said(run: RunReader, kind: EventKind) -> dict[str, Any]:
    return {event.name: event.value for event in of_kind(run.store.table("events"), kind)}


@pytest.mark.parametrize("name", ["gan", "sam"])
def test_it_goes_on_from_a_checkpoint(name: str, pool: RankPool) -> None:
    """States of all optimizers, of those inside of others, and of all schedules are kept."""
    case = {"gan": steps_gan.CASE, "sam": steps_sam.CASE}[name]
    flags = {**case.flags, "steps": 6}
    right = train_plainly(pool, case)["losses"]
    run = trained(pool, case, **flags, save_every=2)
    for plan in ("1 rank", "ddp"):
        resumed = trained(pool, case, plan, **flags, resume=f"{run.path}@2")
        expected = right[2:6]
        np.testing.assert_allclose(resumed.metrics()["loss"], expected, rtol=2e-4, atol=1e-7)


def test_a_rollback_restores_every_optimizer(pool: RankPool) -> None:
    case = steps_gan.CASE
    script = {"2": [["checkpoint", None]], "4": [["rollback", 2]]}
    run = trained(pool, case, function=SCRIPTED, arguments={"script": script})
    np.testing.assert_allclose(run.metrics()["loss"], train_plainly(pool, case)["losses"], rtol=2e-4, atol=1e-7)
    assert not said(run, EventKind.REFUSED)


def test_it_is_steered_as_one_process(pool: RankPool) -> None:
    case = step_case(TWO, flags={"steps": 7})
    script = {
        "1": [["lr", "x0.5"]],
        "2": [["clip", 0.5]],
        "3": [["freeze", "^b$"], ["accumulate", 2]],
        "5": [["unfreeze", "."]],
    }
    run = trained(pool, case, function=SCRIPTED, arguments={"script": script})
    loop = """
for batch, step in zip(batches(globals()), range(1, spec.steps + 1)):
    if step == 2:
        for each in optimizer.values():
            each.param_groups[0]["lr"] *= 0.5
    for each in optimizer.values():
        each.zero_grad()
    loss = (model["b"](model["a"](batch[0])) - batch[1]).square().mean()
    loss.backward()
    squares = 0.0
    for name, each in optimizer.items():
        if name == "b" and step in (4, 5):
            continue
        squares += norm_of(each) ** 2
        if step > 2:
            nn.utils.clip_grad_norm_(model[name].parameters(), 0.5)
        each.step()
    losses.append(loss.item())
    norms.append(squares ** 0.5)
"""
    right, metrics = train_plainly(pool, case, loop=loop), run.metrics()
    np.testing.assert_allclose(metrics["loss"], right["losses"], rtol=2e-4)
    np.testing.assert_allclose(metrics["grad_norm"], right["norms"], rtol=2e-4)
    assert [round(rate, 6) for rate in metrics["lr"][:3]] == [0.1, 0.05, 0.05]
    assert "cut the batch inside" in said(run, EventKind.REFUSED)["accumulate"]["reason"]


@pytest.mark.parametrize(("action", "steps"), [("skip", 4), ("stop", 2)])
def test_gradients_that_are_not_finite_update_nothing(action: str, steps: int, pool: RankPool) -> None:
    """Only the first rank's samples of the second batch are wrong."""
    cell = TWO.replace("dataloader =", "inputs[5] = float('nan')\ndataloader =")
    case = step_case(cell, flags={"steps": 4})
    run = trained(pool, case, on_nonfinite=action)
    loop = """
for batch, step in zip(batches(globals()), range(1, spec.steps + 1)):
    before = [p.detach().clone() for p in model.parameters()]
    if step == 2:
        losses.append(float("nan"))
    else:
        losses.append(float(train_step(model, optimizer, batch)))
"""
    metrics = run.metrics()
    np.testing.assert_allclose(metrics["loss"], train_plainly(pool, case, loop=loop)["losses"][:steps], rtol=2e-4)
    assert list(metrics["skipped"].astype(bool)) == [step == 2 for step in range(1, steps + 1)]
    (found,) = said(run, EventKind.NONFINITE).values()
    assert "middle of a step" in found["not_found"]


def test_gradients_set_by_hand_are_averaged_and_said(pool: RankPool) -> None:
    cell = TWO.replace(
        "    loss.backward()\n",
        "    parameters = list(model.parameters())\n"
        "    for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):\n"
        "        p.grad = g\n",
    )
    case = step_case(cell)
    run = trained(pool, case)
    np.testing.assert_allclose(run.metrics()["loss"], train_plainly(pool, case)["losses"], rtol=2e-4)
    assert "averaged over ranks when the optimizer steps" in said(run, EventKind.WARNING)["gradients_by_hand"]


def test_validation_and_what_is_not_watched(pool: RankPool) -> None:
    cell = (
        TWO
        + """
eval_dataset = TensorDataset(inputs[:7], inputs[:7].sum(1, keepdim=True))
loss_fn = lambda model, batch: (model["b"](model["a"](batch[0])) - batch[1]).square().mean()
"""
    )
    case = step_case(cell, flags={"steps": 4, "eval_every": 4})
    run = trained(pool, case)
    loop = case.plain + "\nlosses.append(float(loss_fn(model, (inputs[:7], inputs[:7].sum(1, keepdim=True)))))"
    right = train_plainly(pool, case, loop=loop)["losses"]
    np.testing.assert_allclose(run.metrics()["loss"], right[:-1], rtol=2e-4)
    assert math.isclose(said(run, EventKind.VALIDATION)["loss"], right[-1], rel_tol=2e-4)
    assert "those of a rank's own samples" in said(run, EventKind.WARNING)["train_step"]
    phases = run.phases()
    assert {"forward", "backward", "communication", "optimizer"} <= set(phases["phase"])


def test_named_losses_and_gradients_by_layer_are_those_of_one_process(pool: RankPool) -> None:
    """In float64: the last batch is uneven, the discriminator is updated twice, and its last update counts; clipping
    comes after what is shown. A name that the cell logs itself is its own."""
    cell = steps_gan.CASE.cell.replace("model = nn", "torch.set_default_dtype(torch.float64)\nmodel = nn")
    cell = cell.replace("    nn.utils.clip_grad", "    if False: nn.utils.clip_grad")  # it would come before the step
    cell = cell.replace("return {", 'log("g", 7.0)\n    return {"twice": 2 * loss_d, ')
    cell = cell.replace("import torch\n", "import torch\nlog = globals().get('log', lambda *_: None)\n", 1)
    case = step_case(cell, flags={"steps": 3, "grad_every": 3, "clip": 0.01})
    run = trained(pool, case)
    loop = """
from torch.optim.optimizer import register_optimizer_step_pre_hook
seen, values = {}, []

def look(optimizer, *_):
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for name, p in model.named_parameters():
        if any(p is each for each in held):
            seen[name] = p.grad.clone()
    nn.utils.clip_grad_norm_(held, 0.01)

register_optimizer_step_pre_hook(look)
for batch, _ in zip(batches(globals()), range(spec.steps)):
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = train_step(model, optimizer, batch)
    values.append({name: float(loss) for name, loss in found.items()})
    for each in lr_scheduler:
        each.step()
layers = {}
for name, p in model.named_parameters():
    layers.setdefault(name.rpartition(".")[0], []).append((seen[name].flatten(), (p.detach() - first[name]).flatten()))
for name, parts in layers.items():
    gradient, change = (torch.cat(each) for each in zip(*parts))
    values.append({"layer": name, "norm": gradient.norm().item(), "max_abs": gradient.abs().max().item(),
                   "mean": gradient.mean().item(), "update_norm": change.norm().item()})
validations = values
"""
    right = train_plainly(pool, case, loop=loop)["validations"]
    values = run.values().pivot_table(index="step", columns="name", values="value")
    np.testing.assert_allclose(values["d"], [step["d"] for step in right[:3]], rtol=1e-9)
    np.testing.assert_allclose(values["twice"], [2 * step["d"] for step in right[:3]], rtol=1e-9)
    assert list(values["g"]) == [7.0] * 3
    gradients = run.gradients()
    of_step = gradients[(gradients.step == 3) & (gradients.scope == "reduced")].set_index("layer")
    weights = run.weights()
    weights = weights[weights.step == 3].set_index("layer")
    assert len(of_step) == len(right[3:]) == 4
    for layer in right[3:]:
        for name in ("norm", "max_abs", "mean"):
            assert math.isclose(of_step[name][layer["layer"]], layer[name], rel_tol=1e-6), (layer, name)
        assert math.isclose(weights["update_norm"][layer["layer"]], layer["update_norm"], rel_tol=1e-6)


#: what is changed of the cell -> options, and the text that refuses it
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "zero1": ("", "", {"plugin": "zero1"}, "use --framework colossal --plugin ddp or --framework torch --plugin ddp"),
    "hybrid": ("", "", {"plugin": "hybrid", "tp": 2}, "use --framework colossal --plugin ddp"),
    "accumulate": ("", "", {"accumulate": 2}, "cut the batch inside of train_step"),
    "fp16": ("", "", {"precision": "fp16"}, "use --precision bf16"),
    "passes per sample": (
        "    loss.backward()",
        "    [((model['b'](model['a'](x)) - y) ** 2).sum().backward() for x, y in zip(*batch)]",
        {},
        "call backward once",
    ),
    "weights by rank": (
        "    return loss",
        "    with torch.no_grad():\n        model['a'].bias.add_(batch[0].mean())\n    return loss",
        {},
        "changes weights (a) in a different way on each rank",
    ),
    "a graph of gradients": ("loss.backward()", "loss.backward(create_graph=True)", {}, "torch.autograd.grad(..."),
    "an optimizer that is not named": (
        "    return loss",
        "    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).step()\n    return loss",
        {},
        "that neither model nor optimizer of the cell holds",
    ),
    "an algorithm": ("", "", {"algorithm": "bf16"}, "the updates of train_step are reduced whole"),
    "no loss": ("    return loss", "    return None", {}, "train_step returned a NoneType: return the loss"),
    "losses of samples": ("    return loss", "    return loss + batch[1]", {}, "a tensor of shape"),
    "other arguments": ("(model, optimizer, batch)", "(model, batch)", {}, "define train_step(model, optimizer"),
    "a dict of models": ("nn.ModuleDict({", "dict({", {}, "torch.nn.ModuleDict"),
    "a hook": ("inputs = torch", "model['a'].weight.register_hook(lambda g: g * 2)\ninputs = torch", {}, "hooks on"),
    "shared parameters": (
        'Adam(model["b"].parameters())',
        "Adam(model.parameters())",
        {},
        "optimizer['a'] and optimizer['b'] hold the same parameter",
    ),
    "validation without a loss": ("inputs = torch", "eval_dataset = [1]\ninputs = torch", {}, "computes a valid"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused(name: str, pool: RankPool) -> None:
    before, after, options, text = REFUSED[name]
    assert before in TWO
    cell = TWO.replace(before, after, 1) if before else TWO
    cell = cell.replace("= dict({", "= ({", 1).replace("}))", "})") if "dict({" in after else cell
    run, failure = train_case(pool, step_case(cell), "ddp", **options)
    assert text in failure
    assert run is None or run.last_step <= 1
