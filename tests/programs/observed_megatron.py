"""Loops around Megatron's DDP, observed: ``torchrun observed_megatron.py OUT``. One case after the other, each beside
the same training of a whole model in float64."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

import workbench
from tests.programs.observed_odd import batch
from tests.programs.observed_script import by_layer, network
from workbench.engine.frameworks.megatron import repairs

with repairs.uncompiled():
    from megatron.core import parallel_state
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.enums import ModelType
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.module import MegatronModule

STEPS, PIECES, LR, TURNED, LOWER = 5, 2, 0.1, 4, 0.05
#: name -> options of its DDP and its optimizer
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlapped": {"ddp": {"overlap_grad_reduce": True, "bucket_size": 100}, "clip_grad": 0.5},
    "distributed": {"ddp": {"use_distributed_optimizer": True}, "clip_grad": 0.5, "optimizer": "adam"},
    "bf16": {"ddp": {"grad_reduce_in_fp32": True}, "bf16": True},
    "fp16": {"fp16": True, "loss_scale": 128.0, "clip_grad": 0.5},
    "tokens": {"config": {"calculate_per_token_loss": True}},
    "split": {"tp": 2, "clip_grad": 0.5},
}


class Network(MegatronModule):
    """The small network of these tests, as Megatron's schedules call a model."""

    def __init__(self, config: Any, inner: torch.nn.Module) -> None:
        super().__init__(config=config)
        self.inner = inner
        self.model_type = ModelType.encoder_or_decoder

    def set_input_tensor(self, input_tensor: Any) -> None:
        """There are no stages."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x)
        return found


class Case:
    """Model, DDP and optimizer of a case."""

    def __init__(self, name: str) -> None:
        options = dict(CASES[name])
        tp = options.pop("tp", 1)
        ddp_config = DistributedDataParallelConfig(**options.pop("ddp", {}))
        self.ranks = dist.get_world_size() // tp
        parallel_state.initialize_model_parallel(tp, create_gloo_process_groups=False)
        self.dtype = torch.bfloat16 if "bf16" in options else torch.float16 if "fp16" in options else torch.float32
        self.config = TransformerConfig(
            num_layers=1,
            hidden_size=8,
            num_attention_heads=2,
            tensor_model_parallel_size=tp,
            params_dtype=self.dtype,
            **options.pop("config", {}),
        )
        inner = network()
        self.whole = copy.deepcopy(inner).double()
        self.model = DistributedDataParallel(self.config, ddp_config, Network(self.config, inner).to(self.dtype))
        self.clip = options.pop("clip_grad", 0.0)
        kind = torch.optim.AdamW if options.get("optimizer") == "adam" else torch.optim.SGD
        self.updates = kind(self.whole.parameters(), lr=LR, weight_decay=0.0)
        settings = {"optimizer": "sgd", "sgd_momentum": 0.0, "lr": LR, "weight_decay": 0.0, **options}
        config = OptimizerConfig(
            clip_grad=self.clip,
            params_dtype=self.dtype,
            use_distributed_optimizer=ddp_config.use_distributed_optimizer,
            **settings,
        )
        self.optimizer = get_megatron_optimizer(config, [self.model], use_gloo_process_groups=False)
        self.config.grad_scale_func = self.optimizer.scale_loss
        self.config.finalize_model_grads_func = finalize_model_grads
        self.config.no_sync_func = self.model.no_sync
        self.optimizer.zero_grad()

    def step(self, pieces: list[Any]) -> bool:
        """A step of Megatron's own training loop."""

        def forward(iterator: Iterator[Any], model: torch.nn.Module) -> Any:
            x, y = next(iterator)
            output = model(x.to(self.dtype)).float()

            def loss(out: torch.Tensor) -> Any:
                value = cross_entropy(out, y)
                if self.config.calculate_per_token_loss:
                    tokens = torch.tensor(len(y), dtype=torch.int)
                    return value * len(y), tokens, {}
                return value, {}

            return output, loss

        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(pieces),
            model=[self.model],
            num_microbatches=PIECES,
            seq_length=1,
            micro_batch_size=len(pieces[0][1]),
        )
        updated, _, _ = self.optimizer.step()
        return bool(updated)


def gradients(whole: torch.nn.Module, pieces: list[Any]) -> dict[str, Any]:
    """What one process computes of some batches; gradients are in ``.grad``."""
    loss = torch.stack([cross_entropy(whole(x.double()), y) for x, y in pieces]).mean()
    names = dict(whole.named_parameters())
    found = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))  # no backward is observed
    for name, parameter in names.items():
        parameter.grad = found[name]
    norm = float(sum(gradient.square().sum() for gradient in found.values()) ** 0.5)
    return {"loss": loss.item(), "grad_norm": norm, "reduced": by_layer(found)}


def update(case: Case, norm: float, lr: float) -> None:
    """The update of one process by the gradients in ``.grad``, whose norm this is."""
    for parameter in case.whole.parameters():
        assert parameter.grad is not None
        parameter.grad *= min(1.0, case.clip / norm) if case.clip else 1.0
    case.updates.param_groups[0]["lr"] = lr
    case.updates.step()


def trained(name: str, rank: int) -> dict[str, Any]:
    """Some steps under ``observe``; the rate is lowered on the way, and the run is stopped."""
    case = Case(name)
    dp = parallel_state.get_data_parallel_rank()
    expected = []
    with workbench.observe(
        case.model, case.optimizer, name=name, monitor=workbench.MonitorSpec(grad_every=1, level="full")
    ) as run:
        for step in range(10 * STEPS):
            shares = [[batch(each, PIECES * step + piece) for piece in range(PIECES)] for each in range(case.ranks)]
            rate = LR if step < TURNED else LOWER
            own = [gradients(case.whole, share) for share in shares]
            found = gradients(case.whole, [piece for share in shares for piece in share])
            assert case.step(shares[dp])
            update(case, found["grad_norm"], rate)
            expected.append({**found, "lr": rate, "local": [each["reduced"] for each in own]})
            if rank == 0 and step == TURNED - 2:  # a command applies after the step that begins next
                workbench.Run(run.path).set(lr=LOWER)
            if rank == 0 and step == STEPS - 2:
                workbench.Run(run.path).stop()
            run.step(own[dp]["loss"] if name == "tokens" else None)
    parallel_state.destroy_model_parallel()
    return {"path": str(run.path), "expected": expected}


def main(out: Path) -> None:
    repairs.on_processors()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {name: trained(name, rank) for name in CASES}
    if rank == 0:
        (out / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
