"""A Weights & Biases run through wandb's own client (``pip install wandb``).

``WANDB_MODE`` decides where it goes, as everywhere in wandb; without it the run stays on this disk ("offline"), from
where ``wandb sync`` uploads it. Nothing is uploaded unless one of the two asks for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ConfigError
from workbench.export.source import Source, bucket_sums
from workbench.export.tensorboard import SCALARS

PROJECT = "dist-workbench"


def write(source: Source, out: Path) -> Path:
    """Write the run below ``out`` and return its folder there; ``ConfigError`` without wandb, or when it refuses."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f"--to wandb needs wandb ({error}): pip install wandb", field="--to") from error
    settings = wandb.Settings(silent=True, console="off", save_code=False, x_disable_stats=True, x_disable_meta=True)
    try:
        run = wandb.init(
            dir=str(out),
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=source.path.name,
            config={**source.spec.options(), "plan": source.spec.plan.describe()},
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            reinit="create_new",  # another run that is open in this process goes on
            settings=settings,
        )
    except wandb.Error as error:
        raise ConfigError(
            f"wandb refuses: {error}; set WANDB_MODE=offline to write to the disk", field="--to"
        ) from error
    folder = Path(run.dir).parent
    try:
        for step, values in sorted(_steps(source, wandb).items()):
            run.log(values, step=step)
        texts = [[step, words] for _, step, words in source.samples()]
        if texts:
            run.log({"samples": wandb.Table(columns=["step", "text"], data=texts)})
    finally:
        run.finish()
    return folder


def _steps(source: Source, wandb: Any) -> dict[int, dict[str, Any]]:
    """Step -> what is logged there. wandb takes steps in order and each once."""
    out: dict[int, dict[str, Any]] = {}
    columns = (source.metrics[name].tolist() for name in SCALARS)
    for step, *values in zip(source.metrics["step"].astype(int).tolist(), *columns, strict=True):
        out[step] = {name: value for name, value in zip(SCALARS, values, strict=True) if np.isfinite(value)}
    for _, step, name, value in source.validation():
        out.setdefault(step, {})[f"validation/{name}"] = value
    for step, what, layer, norm in source.layer_norms:
        out.setdefault(step, {})[f"{what.replace(' ', '_')}/{layer}"] = norm
    for step, layer, first, (zeros, *counts) in source.histograms():
        limits, _, _ = bucket_sums(first, counts)
        if limits:
            edges = [0.0, limits[0] / 2, *limits]
            drawn = wandb.Histogram(np_histogram=(np.array([zeros, *counts]), np.array(edges)))
            out.setdefault(step, {})[f"gradient_magnitude/{layer or 'model'}"] = drawn
    return out
