"""``digits-vit``: a small vision transformer that classifies handwritten digits (images bundled with scikit-learn)."""

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
_IMAGE_SIZE = 8  # pixels per side; brightness 0 .. 16
_PATCH_SIZE = 2
_VALIDATION_IMAGES = 360  # of 1,797 images
_INTERMEDIATE_FACTOR = 2  # times the hidden size

#: ``vocabulary``: the classes; a sequence has one token per patch and the class token
_SHAPES = {
    "tiny": ModelShape(layers=4, hidden=64, heads=4, kv_heads=4, vocabulary=CLASSES, sequence_length=17),
    "small": ModelShape(layers=8, hidden=256, heads=8, kv_heads=8, vocabulary=CLASSES, sequence_length=17),
}


def find_data_file() -> Path:
    """Find scikit-learn's file of digits without importing scikit-learn. Raises ``ConfigError`` if it is missing."""
    try:
        file = Path(str(importlib.metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data")))
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "digits-vit uses the images bundled with scikit-learn, which is not installed: pip install scikit-learn",
            field="--recipe",
        ) from error
    file /= "digits.csv.gz"
    if not file.is_file():
        raise ConfigError(f"digits-vit: {file} is missing: reinstall scikit-learn", field="--recipe")
    return file


def check_data() -> None:
    """Raise ``ConfigError`` if the images are not on this machine."""
    find_data_file()


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load all images, float32 [1797, 1, 8, 8] in -1 .. 1, and their digits, int64 [1797], in the file's order."""
    import numpy as np
    import torch

    with gzip.open(find_data_file(), "rt", encoding="ascii") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    images = table[:, :-1].reshape(-1, 1, _IMAGE_SIZE, _IMAGE_SIZE) / 8 - 1
    return images, table[:, -1].long()


def make_config(size: str) -> Any:
    """Make the ``ViTConfig`` of a size ("tiny", "small")."""
    from transformers import ViTConfig

    shape = _SHAPES[size]
    return ViTConfig(
        image_size=_IMAGE_SIZE,
        patch_size=_PATCH_SIZE,
        num_channels=1,
        hidden_size=shape.hidden,
        intermediate_size=_INTERMEDIATE_FACTOR * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_labels=CLASSES,
        initializer_range=0.06,
        attn_implementation="sdpa",
    )


def learning_rate_factor(step: int, steps: int) -> float:
    """Learning rate at ``step`` relative to its peak: linear warm-up over a tenth of the steps, then cosine decay to
    0."""
    warm_up = max(1, min(50, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))


def build(spec: TrainSpec) -> Workload:
    """Build model, data and evaluation for ``spec.size``; equal on every rank."""
    import torch
    from torch.utils.data import TensorDataset

    from workbench.engine.base.workload import Workload
    from workbench.engine.data.dataset_source import dataset_source, steps_planned
    from workbench.recipes.models import loss_of_model, seeded_model

    size = spec.size or RECIPE.default_size
    images, digits = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, validation = order[_VALIDATION_IMAGES:], order[:_VALIDATION_IMAGES]
    model = seeded_model("ViTForImageClassification", make_config(size), spec.seed)
    lr = spec.lr if spec.lr is not None else RECIPE.defaults[size]["lr"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    data = dataset_source(TensorDataset(images[train], digits[train]), spec, _collate)
    steps = steps_planned(spec, data)
    return Workload(
        model=model,
        optimizer=optimizer,
        data=data,
        criterion=loss_of_model,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps)),
        evaluate=_Evaluator(images[validation], digits[validation]),
    )


def _collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    import torch

    images, digits = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(digits)}


class _Evaluator:
    """Loss, accuracy and confusion matrix (rows: true digit, columns: predicted digit) on the validation images."""

    def __init__(self, images: torch.Tensor, digits: torch.Tensor) -> None:
        self.images = images
        self.digits = digits

    def __call__(self, strategy: Evaluating) -> Evaluation:
        import torch

        from workbench.engine.base.workload import Evaluation
        from workbench.engine.frameworks.torch_common.device import rank_device
        from workbench.engine.frameworks.torch_common.generate import gather_rows, logits_of, shares

        own = shares(len(self.images), strategy)[strategy.coordinates.dp]
        logits = logits_of(strategy.forward({"pixel_values": self.images[own].to(rank_device())}))
        scores = gather_rows(strategy, logits, len(self.images), CLASSES).cpu()
        predictions = scores.argmax(-1)
        confusion = torch.bincount(self.digits * CLASSES + predictions, minlength=CLASSES**2).view(CLASSES, CLASSES)
        return Evaluation(
            values={
                "loss": float(torch.nn.functional.cross_entropy(scores, self.digits)),
                "accuracy": float((predictions == self.digits).float().mean()),
                "confusion_matrix": confusion.tolist(),
            }
        )


RECIPE = Recipe(
    name="digits-vit",
    title="A small vision transformer that classifies handwritten digits",
    sizes=_SHAPES,
    default_size="tiny",
    defaults={
        "tiny": {"steps": 300, "batch_size": 64, "lr": 3e-3, "eval_every": 50, "shuffle": True},
        "small": {"steps": 500, "batch_size": 128, "lr": 1e-3, "eval_every": 100, "shuffle": True},
    },
    check_data=check_data,
    build=build,
)
