"""Steps that a run keeps because a loss or a gradient was not finite: where they are, and which can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import RunDirectoryError
from workbench.rundir.log import rank_directory

#: what the training found; the model's weights; what a replay found
FAULT_FILE, WEIGHTS_FILE, REPLAY_FILE = "fault.json", "weights.safetensors", "replay.json"
#: what synchronised batch normalisation computed from the samples of other replicas; there only where a model has it
STATISTICS_FILE = "statistics.safetensors"


def fault_directory(run: str | Path, rank: int, step: int) -> Path:
    """Directory in which a rank saves what a replay of its part of a step needs."""
    return rank_directory(run, rank) / f"nonfinite-step-{step:06d}"


def read_fault(directory: Path) -> dict[str, Any]:
    """What a rank told of the step that it saved in ``directory``: ``step``, ``culprit``, ``weights`` and more."""
    about: dict[str, Any] = json.loads((directory / FAULT_FILE).read_text(encoding="utf-8"))
    return about


def find_kept(run: Path, step: int | None = None, rank: int | None = None) -> Path:
    """The directory of a kept step. ``RunDirectoryError`` names those that there are."""
    kept = sorted(run.glob(f"rank-*/nonfinite-step-*/{FAULT_FILE}"), key=lambda file: (file.parent.name, str(file)))
    if not kept:
        raise RunDirectoryError(
            f"{run} has no step to replay: no loss or gradient was NaN or infinite while the run was monitored"
        )
    chosen = []
    for file in kept:
        about = read_fault(file.parent)
        here = int(file.parent.parent.name.removeprefix("rank-"))
        if here == (about["culprit"] if rank is None else rank) and step in (None, about["step"]):
            chosen.append((file.parent, about))
    chosen.sort(key=lambda one: one[1]["weights"] != "kept")  # of several steps the first that can be replayed
    if not chosen:
        there = ", ".join(f"step {int(file.parent.name[-6:])} on {file.parent.parent.name}" for file in kept)
        raise RunDirectoryError(f"step {step} of rank {rank} was not recorded in {run}: there are {there}")
    directory, about = chosen[0]
    if about["weights"] != "kept":
        raise RunDirectoryError(f"step {about['step']} cannot be replayed: {about['weights']}")
    return directory
