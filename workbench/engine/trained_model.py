"""The trained model of a run in this process, from one of its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from workbench.core.config import TrainSpec
from workbench.core.frameworks import framework
from workbench.engine.base.workload import Workload
from workbench.engine.entry import build_workload
from workbench.engine.pretrained import lora
from workbench.engine.pretrained.directory import BESIDE_TOKENIZERS, CONFIG_FILE, TOKENIZER_FILES
from workbench.engine.pretrained.load import TRAINED
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
    model = _built(run, spec).model if model is None else model
    load_weights(model, checkpoint)
    return model.to(device).eval()


def _built(run: Path, spec: TrainSpec) -> Workload:
    if framework(spec.plan.framework).adopts:
        raise ConfigError(
            f"the model of a run of {spec.plan.framework} is none of PyTorch: run.state_dict() has its weights by "
            "name, for a model that you make yourself",
            field="model",
        )
    try:
        with random_numbers_kept():
            workload = build_workload(run, spec)
    except WorkbenchError:
        raise
    except Exception as error:
        raise RunError(
            f"the cell of {run.name} cannot be run in this process ({type(error).__name__}: {error}): make the model "
            "yourself and pass it, as in run.load_model(model)"
        ) from error
    if workload.after_split is not None:
        workload.after_split(workload.model)
        workload.model.to(TRAINED)  # the weights of a checkpoint are those that were trained, in half precision too
    return workload


def save_pretrained(run: Path, checkpoint: Path, spec: TrainSpec, directory: Path, merge: bool) -> Path:
    """Write the trained model of a run as the transformers library's ``from_pretrained`` reads it, with the tokenizer
    that the recipe or cell has, or that of the directory that the run began from.

    ``merge``: adapters are added to the weights; False: the adapters alone are written, as peft reads them. Raises
    ``ConfigError`` for any other model, and as ``load_model``.
    """
    workload = _built(run, spec)
    model: Any = workload.model
    if not hasattr(model, "save_pretrained"):
        raise ConfigError(
            f"{type(model).__name__} is not a model of the transformers library, so it has no save_pretrained: "
            "torch.save(run.state_dict(), FILE) writes its weights",
            field="model",
        )
    load_weights(model, checkpoint)
    model.eval()
    if merge:
        start = Path(getattr(model, "name_or_path", "") or "")
        model = lora.merged(model) if lora.has_adapters(model) else model
        model.save_pretrained(directory)
        _save_tokenizer(workload.tokenizer, start, directory)
    else:
        lora.save_adapter(model, directory)
    return directory


def _save_tokenizer(tokenizer: Any, start: Path, directory: Path) -> None:
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(directory)
    elif (start / CONFIG_FILE).is_file() and start.resolve() != directory.resolve():
        for name in (*TOKENIZER_FILES, *BESIDE_TOKENIZERS):
            if (start / name).is_file():
                shutil.copyfile(start / name, directory / name)
