"""Loops around DeepSpeed's engines, observed: ``torchrun observed_deepspeed.py OUT``. ZeRO stages 0 to 3, half
precision and a pipeline one after the other, each beside the same training of a whole model in float64."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", DS_IGNORE_CUDA_DETECTION="1")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from torch.nn.functional import cross_entropy

import workbench
from tests.programs.observed_odd import batch
from tests.programs.observed_script import by_layer, network

STEPS, PIECES, LR, TURNED, LOWER = 6, 2, 0.1, 4, 0.05
SCALE = 128
#: name -> what its configuration has beside the sizes
CASES: dict[str, dict[str, Any]] = {
    **{f"zero-{stage}": {"zero_optimization": {"stage": stage}} for stage in range(4)},
    "fp16": {"fp16": {"enabled": True, "loss_scale": SCALE}},
    "fp16-zero-2": {
        "fp16": {"enabled": True, "initial_scale_power": 24, "hysteresis": 1},
        "zero_optimization": {"stage": 2},
    },
    "bf16": {"bf16": {"enabled": True}},
    "bf16-zero-1": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
    "pipeline": {},
    "pipeline-bf16": {"bf16": {"enabled": True}},
}
CLIPPED = ("zero-1", "zero-3", "fp16-zero-2", "bf16")  # a pipeline clips each stage by its own norm
#: DeepSpeed builds a kernel of its own for processors, with a compiler: it does not need it
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
#: it looks for instructions that make half precision fast, which these few numbers do not need
deepspeed.get_accelerator().is_fp16_supported = lambda: True


def whole_step(whole: torch.nn.Module, pieces: list[Any], clip: float, lr: float) -> tuple[dict[str, Any], Any]:
    """What one process computes of the batches of all ranks, and its update."""
    loss = torch.stack([cross_entropy(whole(x.double()), y) for x, y in pieces]).mean()
    names = dict(whole.named_parameters())
    found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
    norm = float(sum(gradient.square().sum() for gradient in found.values()) ** 0.5)
    factor = min(1.0, clip / norm) if clip else 1.0

    @torch.no_grad()
    def update() -> None:
        for name, parameter in names.items():
            parameter.sub_(lr * factor * found[name])

    return {"loss": loss.item(), "grad_norm": norm, "reduced": by_layer(found)}, update


def step_of(engine: Any, pieces: list[Any]) -> Any:
    """One step of this rank's pieces; its loss, where the engine tells it."""
    if hasattr(engine, "train_batch"):
        return engine.train_batch(iter(pieces))
    for x, y in pieces:
        engine.backward(cross_entropy(engine(x).float(), y))
        engine.step()
    return None


def made(name: str, model: torch.nn.Sequential, ranks: int) -> torch.nn.Module:
    if not name.startswith("pipeline"):
        return model
    loss_fn = lambda outputs, labels: cross_entropy(outputs.float(), labels)  # noqa: E731
    return PipelineModule(list(model), num_stages=ranks, loss_fn=loss_fn, partition_method="uniform")


def trained(name: str, rank: int, ranks: int) -> dict[str, Any]:
    """Some steps under ``observe``; the rate is lowered on the way, and the run is stopped."""
    model = network()
    whole = copy.deepcopy(model).double()
    clip = 0.5 * (name in CLIPPED)
    is_pipeline = name.startswith("pipeline")
    built = made(name, model, ranks)
    config = {
        "train_micro_batch_size_per_gpu": 6,
        "gradient_accumulation_steps": PIECES,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        **CASES[name],
    }
    engine, optimizer, *_ = deepspeed.initialize(
        model=built, optimizer=torch.optim.SGD(built.parameters(), lr=LR), config=config
    )
    expected = []
    dtype = next(engine.parameters()).dtype
    with workbench.observe(engine, optimizer, name=name, monitor=workbench.MonitorSpec(grad_every=1)) as run:
        for step in range(10 * STEPS):
            shares = [[batch(each, PIECES * step + piece) for piece in range(PIECES)] for each in range(ranks)]
            shares = shares[:1] if is_pipeline else shares  # its ranks have one batch
            rate = LR if step < TURNED else LOWER
            # without ZeRO, DeepSpeed divides by a scale that the loss was not multiplied by
            true_rate = rate / (SCALE if name == "fp16" else 1)
            found, update = whole_step(whole, [piece for share in shares for piece in share], clip, true_rate)
            loss = step_of(engine, [(x.to(dtype), y) for x, y in shares[0 if is_pipeline else rank]])
            found |= {"lr": rate, "skipped": bool(getattr(engine.optimizer, "overflow", False))}
            if not found["skipped"]:
                update()
            expected.append(found)
            if rank == 0 and step == TURNED - 2:  # a command applies after the step that begins next
                workbench.Run(run.path).set(lr=LOWER)
            if rank == 0 and step == STEPS - 2:
                workbench.Run(run.path).stop()
            run.step(loss)
    return {"path": str(run.path), "expected": expected}


def main(out: Path) -> None:
    deepspeed.init_distributed("gloo", verbose=False)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = {name: trained(name, rank, ranks) for name in CASES}
    if rank == 0:
        (out / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
