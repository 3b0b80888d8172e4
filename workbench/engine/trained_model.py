"""The trained model of a run in this process, from one of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.engine.entry import build_workload
from workbench.engine.state.randomness import random_numbers_kept
from workbench.engine.state.weights import load_weights, whole_weights
from workbench.errors import ConfigError, RunError, WorkbenchError

__all__ = ["load_model", "save_pretrained", "whole_weights"]


def load_model(
    run: Path, checkpoint: Path, spec: TrainSpec, model: torch.nn.Module | None, device: str
) -> torch.nn.Module:
    """``model`` with the weights of ``checkpoint``, in evaluation mode, on ``device``. None: the model that the run's
    recipe or cell builds; this process's random generators stay as they are.

    Raises ``RunError`` when the cell cannot be run here, ``ConfigError`` for another model, and ``RunDirectoryError``
    for a damaged checkpoint.
    """
    model = _built(run, spec) if model is None else model
    load_weights(model, checkpoint)
    return model.to(device).eval()


def _built(run: Path, spec: TrainSpec) -> Any:
    try:
        with random_numbers_kept():
            return build_workload(run, spec).model
    except WorkbenchError:
        raise
    except Exception as error:
        raise RunError(
            f"the cell of {run.name} cannot be run in this process ({type(error).__name__}: {error}): make the model "
            "yourself and pass it, as in run.load_model(model)"
        ) from error


def save_pretrained(model: Any, directory: Path) -> Path:
    """Write a model of the transformers library as its ``from_pretrained`` reads it. ``ConfigError`` for another."""
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(
            f"{type(model).__name__} is no model of the transformers library, so it has no save_pretrained: "
            "torch.save(run.state_dict(), FILE) writes its weights",
            field="model",
        )
    model.save_pretrained(directory)
    return directory
