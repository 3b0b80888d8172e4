"""What ranks do to compare torch's pipelines with one process: losses, norms, and the weights at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from tests.engine import models
from workbench.core.config import TrainSpec
from workbench.engine.base.workload import Workload
from workbench.engine.entry import joined_of, load_strategy
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.errors import ConfigError

STEPS = 4
WIDTH, WORDS = 16, 32


class Residual(nn.Module):
    """Blocks that a loop adds up by their place in the list; a parameter and an embedding before them; a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(8, WIDTH))
        self.parts = nn.ModuleDict(
            {
                "embed": nn.Embedding(WORDS, WIDTH),
                "blocks": nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(4)),
                "norm": nn.LayerNorm(WIDTH),
            }
        )
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.parts.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.parts.embed(ids) + self.place[: ids.shape[1]]
        for index, scale in enumerate((1.0, 0.5, 0.25, 2.0)):
            x = x + scale * torch.tanh(self.parts.blocks[index](x))
        return self.head(self.parts.norm(x))


class Named(nn.Module):
    """Modules with names of their own; the first stage is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.neck, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS)
        self.stem.requires_grad_(False)
        self.body.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.neck(torch.tanh(self.body(self.stem(ids))))))


class Forgetful(Named):
    """Its head takes the embedding too, which a pipeline does not pass on."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        early = self.stem(ids)
        return self.head(torch.tanh(self.neck(torch.tanh(self.body(early)))) + early)


class Late(Named):
    """The module that stands last is called first."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.body(self.stem(self.head(self.stem(ids)).argmax(-1)))))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "residual": (Residual, ()),
    "named": (Named, ("neck",)),
    "forgetful": (Forgetful, ("neck",)),
    "late": (Late, ("neck",)),
    "llama": (lambda: models.model("llama"), ()),
    "tied": (lambda: models.model("tied"), ()),
}


def batch(step: int, *, short: bool) -> dict[str, torch.Tensor]:
    """Tokens and labels, of which each sample has another number that count; of odd steps the sequences are shorter."""
    random = torch.Generator().manual_seed(step)
    length = 6 if short and step % 2 else 8
    ids = (torch.randint(0, WORDS, (models.BATCH, 1), generator=random) + torch.arange(length)) % WORDS
    hidden = torch.arange(length) < torch.arange(models.BATCH)[:, None] % 5
    return {"ids": ids, "labels": ids.masked_fill(hidden, -100)}


def counted(outputs: Any, data: Any) -> Any:
    """A mean over the tokens of the whole batch."""
    scores = getattr(outputs, "logits", outputs).flatten(0, 1)
    labels = (data["labels"] if isinstance(data, dict) else data[-1]).flatten()
    return functional.cross_entropy(scores, labels, reduction="sum"), (labels != -100).sum()


def _model(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name][0]()


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """One whose update grows with the gradient: Adam's first step is as large for one that is rounding only."""
    return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def _inputs(name: str, step: int) -> Any:
    data = batch(step, short=True)
    if name in ("llama", "tied"):
        return {"input_ids": data["ids"], "labels": data["labels"]}
    return data["ids"], data["labels"]


def plain(rank: int, ranks: int, directory: Path, *, name: str, clip: float) -> dict[str, Any]:
    """Losses, norms and weights of one process."""
    network = _model(name)
    optimizer = _optimizer(network)
    losses, norms = [], []
    for step in range(STEPS):
        data = _inputs(name, step)
        total, count = counted(network(**data) if isinstance(data, dict) else network(data[0]), data)
        loss = total / count
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), clip or math.inf).item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    weights = {key: weight.tolist() for key, weight in network.state_dict().items()}
    return {"losses": losses, "norms": norms, "weights": weights}


def train(
    rank: int, ranks: int, directory: Path, *, cases: list[tuple[str, dict[str, Any]]]
) -> list[dict[str, Any] | str]:
    """The same of each case, with the weights that this rank holds; of one that is refused the message."""
    found: list[dict[str, Any] | str] = []
    for number, (name, options) in enumerate(cases):
        asked = {"ranks": ranks, "framework": "torch", "plugin": "hybrid", "batch_size": models.BATCH, **options}
        spec = TrainSpec.from_options(asked)
        with joined_of(spec)(rank, ranks, directory, device_type="cpu", token=str(number)), noted_losses():
            try:
                found.append(_train(rank, spec, name))
            except (ConfigError, RuntimeError) as error:
                found.append(str(_refusal(error)))
    return found


def _refusal(error: BaseException) -> BaseException:
    """The refusal that torch's schedule has wrapped."""
    while error.__cause__ is not None and not isinstance(error, ConfigError):
        error = error.__cause__
    return error


def _train(rank: int, spec: TrainSpec, name: str) -> dict[str, Any]:
    network = _model(name)
    optimizer = _optimizer(network)
    workload = Workload(
        model=network,
        optimizer=optimizer,
        data=None,  # type: ignore[arg-type]
        criterion=counted,
        pipeline_split=MODELS[name][1],
    )
    strategy = load_strategy(spec)(spec, rank)
    strategy.check(spec, workload)
    strategy.prepare(workload)
    losses, norms, evaluated = [], [], []
    try:
        for step in range(STEPS):
            share = models.part(_inputs(name, step), strategy.coordinates.dp, strategy.mesh.dp)
            if step == 2:
                kept = strategy.evaluated(share, outputs=True)
                evaluated += [] if kept is None else [list(kept[0].shape if name == "named" else ())]
            pieces = [models.part(share, index, spec.accumulate) for index in range(spec.accumulate)]
            loss = strategy.forward_backward(pieces)
            seen = torch.tensor([0.0, 0.0] if loss is None else [loss.item(), 1.0], dtype=torch.float64)
            square = strategy.grad_sq().clone()
            dist.all_reduce(seen)
            dist.all_reduce(square)
            losses.append((seen[0] / seen[1]).item())
            norms.append(square.sqrt().item())
            strategy.step()
        weights = {key: weight.tolist() for key, weight in network.named_parameters()}
    finally:
        strategy.close()
    return {"losses": losses, "norms": norms, "weights": weights, "evaluated": evaluated}
