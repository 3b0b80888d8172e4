"""What ranks do in the tests of algorithms: train a small model by DistributedDataParallel and count what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from workbench.core import algorithms
from workbench.core.config import TrainSpec
from workbench.engine.communication.exchange import GradientExchange
from workbench.engine.communication.weight_exchange import WeightExchange
from workbench.engine.entry import joined_of
from workbench.engine.frameworks.torch_common.ddp_reduction import DdpReduction

SHAPES = {"weight": (6, 20), "bias": (6,), "head.weight": (4, 6), "head.bias": (4,)}
STEPS, RATE, SAMPLES = 20, 0.1, 8


def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random numbers that belong to a name."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(map(ord, name))), dtype=torch.float64)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(numbers("weight", SHAPES["weight"]).float() * 0.3)
        self.bias = torch.nn.Parameter(torch.zeros(SHAPES["bias"]))
        self.head = torch.nn.Linear(6, 4)
        with torch.no_grad():
            self.head.weight.copy_(numbers("head", SHAPES["head.weight"]) * 0.3)
            self.head.bias.zero_()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(inputs @ self.weight.T + self.bias))


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of one rank in one step."""
    return numbers(f"x{step}.{rank}", (SAMPLES, 20)), numbers(f"y{step}.{rank}", (SAMPLES, 4))


@contextmanager
def counted(sent: list[tuple[str, int]]) -> Iterator[None]:
    """Notes the kind and the bytes of each collective that sends gradients."""
    names = {"all_reduce": lambda args: args[0], "all_gather_single": lambda args: args[1]}
    before = {name: getattr(dist, name) for name in names}

    def noting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = names[name](args)
            if tensor.dtype != torch.int32:  # which gradients there are
                sent.append((name, tensor.numel() * tensor.element_size()))
            return before[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, noting(name))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


def train(
    rank: int, ranks: int, directory: Path, *, texts: list[str], token: str = "", poison: int = -1
) -> dict[str, Any]:
    """For each algorithm: the weights after each step, and what was sent in a step. ``poison``: rank 1's gradient is
    not a number in this step."""
    spec = TrainSpec.from_options({"ranks": ranks, "framework": "torch", "plugin": "ddp"})
    with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token):
        return {text: _trained(rank, text, poison) for text in texts}


def train_locally(
    rank: int, ranks: int, directory: Path, *, texts: list[str], token: str = "", frozen: str = ""
) -> dict[str, Any]:
    """As ``train``, for algorithms under which ranks step by themselves. ``frozen``: a parameter that nothing changes
    from step 6 to step 14."""
    spec = TrainSpec.from_options({"ranks": ranks, "framework": "torch", "plugin": "ddp"})
    with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=token):
        return {text: _stepped(rank, text, frozen) for text in texts}


def _stepped(rank: int, text: str, frozen: str) -> dict[str, Any]:
    model = Model()
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    named = dict(model.named_parameters())
    exchange = WeightExchange(algorithms.chosen(text), model, named, group=ddp.process_group, seed=7)
    reduction = DdpReduction(ddp, afterwards=False, weights=exchange)
    weights, means, sent = [], [], []
    for step in range(STEPS):
        inputs, targets = batch(step, rank)
        exchange.begin_step()
        sent.append([])
        kept = [named[frozen]] if frozen and step in range(5, 14) else []
        with counted(sent[-1]):
            with reduction.around(is_last=True):
                loss = (ddp(inputs.float()) - targets.float()).square().sum() / SAMPLES
            reduction.looks_at(loss)
            loss.backward()
            reduction.finish()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter not in set(kept):
                        parameter.sub_(RATE * parameter.grad)
                    parameter.grad = None
            exchange.end_step({id(parameter) for parameter in kept})
        weights.append({name: parameter.tolist() for name, parameter in named.items()})
        with exchange.averaged(), exchange.averaged():
            means.append({name: parameter.tolist() for name, parameter in named.items()})
            assert {name: exchange.own(parameter).tolist() for name, parameter in named.items()} == weights[-1]
        assert {name: parameter.tolist() for name, parameter in named.items()} == weights[-1]
    kept_tensors = {name: tensor.tolist() for name, tensor in exchange.kept.items()}
    return {"weights": weights, "means": means, "sent": sent, "kept": kept_tensors}


def _trained(rank: int, text: str, poison: int) -> dict[str, Any]:
    model = Model()
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    exchange = GradientExchange(
        algorithms.chosen(text),
        dict(model.named_parameters()),
        group=ddp.process_group,
        seed=7,
        scale=lambda: 1.0,
    )
    reduction = DdpReduction(ddp, afterwards=True, exchange=exchange)
    weights, gradients, sent = [], [], []
    for step in range(STEPS):
        inputs, targets = batch(step, rank)
        sent.append([])
        with counted(sent[-1]):
            with reduction.around(is_last=True):
                loss = (ddp(inputs.float()) - targets.float()).square().sum() / SAMPLES
                if step == poison and rank == 1:
                    loss = loss * float("nan")
            reduction.looks_at(loss)
            loss.backward()
            reduction.finish()
        gradients.append({name: parameter.grad.tolist() for name, parameter in model.named_parameters()})
        with torch.no_grad():
            for parameter in model.parameters():
                if step != poison:
                    parameter.sub_(RATE * parameter.grad)
                parameter.grad = None
        weights.append({name: parameter.tolist() for name, parameter in model.named_parameters()})
    kept = {name: tensor.tolist() for name, tensor in exchange.kept.items()}
    return {"weights": weights, "gradients": gradients[poison:], "sent": sent, "kept": kept}
