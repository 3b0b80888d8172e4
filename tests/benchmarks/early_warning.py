"""At which step each alert begins, beside the step at which the loss shows a fault: three planted faults, healthy runs.

    python -m tests.benchmarks.early_warning [--steps 240] [--at 120] [--healthy 5] [--first-seed 1] [--logged DIR]

A small Llama (recipe stdlib-llama, tiny) learns on 2 CPU ranks. Faults begin at step ``--at``:

- rate: the learning rate grows, within 60 steps, to 12 times what it should be
- attention: the logits and weights of attention are rounded to 8 bits (float8_e4m3fn), gradients too
- batch: rank 1 reads tokens at random
- gradient: on rank 1 the backward pass of one layer multiplies the gradient by -20

"The loss shows it": from this step on, the median of 10 losses lies 2 % above the largest of the healthy runs, for 10
steps.

With ``--logged DIR`` nothing is trained: the alerts of the runs that an earlier call left in DIR are found again, by
the rules as they are now. The faulty runs have the first seed; what begins before the fault is a false alarm, as is
everything in healthy runs.
Thresholds (workbench/events/alerts.py) were chosen on runs with seeds from 101 on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.machine import describe_machine
from workbench.cluster.session import Session
from workbench.events.alerts import BEGINS, alerts_of
from workbench.run import api
from workbench.telemetry.alerts.engine import find_alerts

FAULTS = ("rate", "attention", "batch", "gradient")
CELL = """
import torch
from workbench.recipes import stdlib_llama

fault, at = {fault!r}, {at}
built = stdlib_llama.build(spec.replace(recipe="stdlib-llama", size="tiny", lr=None))
model, optimizer, dataset = built.model, built.optimizer, built.data.dataset
steps = {{"done": 0}}


def is_on():
    return steps["done"] >= at


def rounded_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    small = lambda values: values.to(torch.float8_e4m3fn).to(values.dtype) if is_on() else values
    length = query.shape[-2]
    logits = small(query @ key.transpose(-1, -2) * scaling)
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = small(logits.masked_fill(mask, -torch.inf).softmax(-1))
    return (weights @ value).transpose(1, 2).contiguous(), weights


if fault == "attention":
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS["rounded"] = rounded_attention
    model.config._attn_implementation = "rounded"
if fault == "gradient" and rank == 1:
    corrupt = lambda module, grads: (-20 * grads[0],) if steps["done"] > at else None  # its loss is counted
    model.model.layers[2].mlp.down_proj.register_full_backward_pre_hook(corrupt)
if fault == "rate":
    factor = stdlib_llama.learning_rate_factor
    too_high = lambda step: factor(step, spec.steps) * (1 + 11 * min(1, max(0, step - at) / 60))
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, too_high)
else:
    lr_scheduler = built.lr_scheduler


def loss_fn(model, tokens):
    if fault == "batch" and rank == 1 and is_on():
        tokens = torch.randint(0, 1024, tokens.shape)
    loss = model(input_ids=tokens, labels=tokens).loss
    steps["done"] += 1
    return loss
"""


def train(fault: str, seed: int, given: argparse.Namespace) -> api.Run:
    """Train once, and return the run."""
    options = {"ranks": 2, "steps": given.steps, "seed": seed, "name": fault or "healthy", "batch_size": 8}
    options |= {"shuffle": True, "eval_every": 0, "final_checkpoint": False, "grad_every": given.grad_every}
    return api.train(options, cell=CELL.format(fault=fault, at=given.at)).wait()


def trained(fault: str, seed: int, given: argparse.Namespace) -> api.Run:
    """The run of a fault ("": healthy): trained now, or logged before."""
    if given.logged is None:
        return train(fault, seed, given)
    kept = sorted(path for path in given.logged.iterdir() if path.name.endswith(f"-{fault or 'healthy'}"))
    return api.Run(kept[0 if fault else seed - given.first_seed])


def begins(run: api.Run, given: argparse.Namespace) -> list[tuple[int, str, str]]:
    """Step, name and sentence of the alerts of a run, as they were logged, or found anew."""
    found = alerts_of(run.store.table("events")) if given.logged is None else find_alerts(run.path)
    return [(alert.step, alert.name, alert.sentence()) for alert in found if alert.state == BEGINS]


def smooth(run: api.Run) -> np.ndarray:
    """The median of the last 10 losses, at each step."""
    loss = run.metrics()["loss"].rolling(10, min_periods=1).median()
    return np.asarray(loss)


def first_shown(loss: np.ndarray, healthy: list[np.ndarray], at: int) -> int:
    """The step from which the loss lies above all healthy ones for 10 steps; 0: never."""
    above = ~(loss <= 1.02 * np.max(healthy, axis=0)[: loss.size])
    return next((step + 1 for step in range(at, above.size) if above[step : step + 10].all()), 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--at", type=int, default=120)
    parser.add_argument("--healthy", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--grad-every", type=int, default=5)
    parser.add_argument("--logged", type=Path, metavar="DIR", help="runs that were trained before")
    parser.add_argument("--faults", nargs="*", default=FAULTS)
    given = parser.parse_args()
    print(describe_machine())
    os.environ.setdefault("WORKBENCH_HOME", tempfile.mkdtemp())
    healthy, false = [], 0
    for seed in range(given.first_seed, given.first_seed + given.healthy):
        run = trained("", seed, given)
        healthy.append(smooth(run))
        found = begins(run, given)
        false += len(found)
        print(f"healthy, seed {seed}: {found or 'no alert'}", flush=True)
    print(f"{false} false alarms in {given.healthy} healthy runs of {given.steps} steps\n")
    print("| fault | the loss shows it at step | alerts, and at which step they begin | false alarms |\n|--|--|--|--|")
    for fault in given.faults:
        run = trained(fault, given.first_seed, given)
        shown, found = first_shown(smooth(run), healthy, given.at), begins(run, given)
        told = "; ".join(f"{step}: {text}" for step, _, text in found if step > given.at)
        early = sum(step <= given.at for step, _, _ in found)
        print(f"| {fault}, from step {given.at + 1} | {shown or 'never'} | {told or 'none'} | {early} |", flush=True)
    print(f"\nruns in {given.logged or os.environ['WORKBENCH_HOME']}")
    session = Session.current()
    if session is not None:
        session.down()


if __name__ == "__main__":
    main()
