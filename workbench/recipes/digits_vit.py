"""``digits-vit``: a small vision transformer that reads handwritten digits (scikit-learn's bundled images)."""

from __future__ import annotations

import gzip
import importlib.metadata
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.config import TrainSpec
from workbench.core.recipe import ModelShape, Recipe
from workbench.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from workbench.engine.base.capabilities import Evaluating
    from workbench.engine.base.workload import Evaluation, Workload

CLASSES = 10
_IMAGE_SIZE = 8  # pixels a side; brightness 0 .. 16
_PATCH_SIZE = 2
_VALIDATION = 360  # of 1,797 images
_INTERMEDIATE = 2  # times the hidden size

#: ``vocabulary`` are the classes; a sequence is one token a patch and the class token
_SHAPES = {
    "tiny": ModelShape(layers=4, hidden=64, heads=4, kv_heads=4, vocabulary=CLASSES, sequence_length=17),
    "small": ModelShape(layers=8, hidden=256, heads=8, kv_heads=8, vocabulary=CLASSES, sequence_length=17),
}


def data_file() -> Path:
    """scikit-learn's file of digits, found without importing scikit-learn; ``ConfigError`` when it is not there."""
    try:
        file = Path(str(importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data")))
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "digits-vit reads the images that scikit-learn brings, which is not installed: pip install scikit-learn",
            field="--recipe",
        ) from error
    file /= "digits.csv.gz"
    if not file.is_file():
        raise ConfigError(f"digits-vit: {file} is missing: reinstall scikit-learn", field="--recipe")
    return file


def check_data() -> None:
    """``ConfigError`` when the images are not on this machine."""
    data_file()


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """All images [1797, 1, 8, 8] in -1 .. 1, and their digits [1797] int64, in the order of the file."""
    import numpy as np
    import torch

    with gzip.open(data_file(), "rt", encoding="ascii") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    images = table[:, :-1].reshape(-1, 1, _IMAGE_SIZE, _IMAGE_SIZE) / 8 - 1
    return images, table[:, -1].long()


def configuration(size: str) -> Any:
    """transformers' configuration of a size."""
    from transformers import ViTConfig

    shape = _SHAPES[size]
    return ViTConfig(
        image_size=_IMAGE_SIZE,
        patch_size=_PATCH_SIZE,
        num_channels=1,
        hidden_size=shape.hidden,
        intermediate_size=_INTERMEDIATE * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_labels=CLASSES,
        initializer_range=0.06,
        attn_implementation="sdpa",
    )


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over a tenth of the steps, then a cosine down to zero."""
    warm_up = max(1, min(50, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))


def build(spec: TrainSpec) -> Workload:
    """Model, data and evaluation for ``spec.size``; the same on every rank."""
    import torch
    from torch.utils.data import TensorDataset

    from workbench.engine.base.workload import Workload
    from workbench.engine.data.sources import DatasetSource
    from workbench.recipes.models import seeded_model

    size = spec.size or RECIPE.default_size
    images, digits = load()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, validation = order[_VALIDATION:], order[:_VALIDATION]
    model = seeded_model("ViTForImageClassification", configuration(size), spec.seed)
    lr = spec.lr if spec.lr is not None else RECIPE.defaults[size]["lr"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    return Workload(
        model=model,
        optimizer=optimizer,
        data=DatasetSource(
            TensorDataset(images[train], digits[train]),
            spec.batch_size,
            seed=spec.seed,
            shuffle=spec.shuffle,
            collate_fn=_batch,
        ),
        criterion=_loss,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, spec.steps)),
        evaluate=_Evaluator(images[validation], digits[validation]),
    )


def _batch(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    import torch

    images, digits = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(digits)}


def _loss(outputs: Any, _batch: Any) -> torch.Tensor:
    return outputs.loss


class _Evaluator:
    """Loss, accuracy and confusion matrix (rows: the digit, columns: what the model says) on the validation images."""

    def __init__(self, images: torch.Tensor, digits: torch.Tensor) -> None:
        self.images = images
        self.digits = digits

    def __call__(self, strategy: Evaluating) -> Evaluation:
        import torch

        from workbench.engine.base.workload import Evaluation
        from workbench.engine.data.generate import gather_rows, logits_of, shares
        from workbench.engine.frameworks.torch_common.device import rank_device

        own = shares(len(self.images), strategy)[strategy.coordinates.dp]
        logits = logits_of(strategy.forward({"pixel_values": self.images[own].to(rank_device())}))
        scores = gather_rows(strategy, logits, len(self.images), CLASSES).cpu()
        guesses = scores.argmax(-1)
        confusion = torch.bincount(self.digits * CLASSES + guesses, minlength=CLASSES**2).view(CLASSES, CLASSES)
        return Evaluation(
            values={
                "loss": float(torch.nn.functional.cross_entropy(scores, self.digits)),
                "accuracy": float((guesses == self.digits).float().mean()),
                "confusion_matrix": confusion.tolist(),
            }
        )


RECIPE = Recipe(
    name="digits-vit",
    title="A small vision transformer that reads handwritten digits",
    sizes=_SHAPES,
    default_size="tiny",
    defaults={
        "tiny": {"steps": 300, "batch_size": 64, "lr": 3e-3, "eval_every": 50, "shuffle": True},
        "small": {"steps": 500, "batch_size": 128, "lr": 1e-3, "eval_every": 100, "shuffle": True},
    },
    plugins=("ddp", "zero1", "zero2", "hybrid"),
    check_data=check_data,
    build=build,
)
