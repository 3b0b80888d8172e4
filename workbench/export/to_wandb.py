"""Writes a run as a Weights & Biases run with wandb's client (``pip install wandb``).

The run is written to the disk (mode ``offline``), and ``wandb sync`` uploads it later. Nothing is uploaded during the
export unless ``WANDB_MODE`` is set to ``online``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import ConfigError
from workbench.export.source import ExportSource, estimate_bucket_sums
from workbench.export.tensorboard import SCALARS

PROJECT = "dist-workbench"


def write(source: ExportSource, out: Path) -> Path:
    """Write the run into the folder ``out`` and return the folder of the wandb run.

    Raises ``ConfigError`` if wandb is not installed or reports an error.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"--to wandb needs wandb, which cannot be imported ({error}): pip install wandb", field="--to"
        ) from error
    settings = wandb.Settings(silent=True, console="off", save_code=False, x_disable_stats=True, x_disable_meta=True)
    try:
        run = wandb.init(
            dir=str(out),
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=source.path.name,
            config={**source.spec.options(), "plan": source.spec.plan.describe()},
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            reinit="create_new",  # keep a wandb run of the user open
            settings=settings,
        )
    except wandb.Error as error:
        raise ConfigError(
            f"wandb could not start a run: {error}; set WANDB_MODE=offline to write the run to disk", field="--to"
        ) from error
    folder = Path(run.dir).parent
    try:
        for step, values in sorted(_values_by_step(source, wandb).items()):
            run.log(values, step=step)
        samples = [[step, text] for _, step, text in source.samples()]
        if samples:
            run.log({"samples": wandb.Table(columns=["step", "text"], data=samples)})
        texts = [[one.step, one.rank, one.name, one.text] for _, one in source.logged_media() if one.kind == "text"]
        if texts:
            run.log({"texts": wandb.Table(columns=["step", "rank", "name", "text"], data=texts)})
    finally:
        run.finish()
    return folder


def _values_by_step(source: ExportSource, wandb: Any) -> dict[int, dict[str, Any]]:
    """Step -> the values to log at it. wandb accepts each step only once, in ascending order."""
    values_by_step: dict[int, dict[str, Any]] = {}
    columns = (source.metrics[name].tolist() for name in SCALARS)
    for step, *values in zip(source.metrics["step"].astype(int).tolist(), *columns, strict=True):
        values_by_step[step] = {name: value for name, value in zip(SCALARS, values, strict=True) if np.isfinite(value)}
    for _, step, name, value in source.validation():
        values_by_step.setdefault(step, {})[f"validation/{name}"] = value
    for _, step, name, value in source.logged_values:
        values_by_step.setdefault(step, {})[name] = value
    for _, one in source.logged_media():
        if one.file is not None:
            name = f"log/{one.name}" if one.rank == 0 else f"log/{one.name}/rank {one.rank}"
            values_by_step.setdefault(one.step, {})[name] = wandb.Image(str(one.file))
    for step, kind, layer, norm in source.layer_norms:
        values_by_step.setdefault(step, {})[f"{kind.replace(' ', '_')}/{layer}"] = norm
    for step, layer, first, (zeros, *counts) in source.histograms():
        limits, _, _ = estimate_bucket_sums(first, counts)
        if limits:
            edges = [0.0, limits[0] / 2, *limits]
            histogram = wandb.Histogram(np_histogram=(np.array([zeros, *counts]), np.array(edges)))
            values_by_step.setdefault(step, {})[f"gradient_magnitude/{layer or 'model'}"] = histogram
    return values_by_step
