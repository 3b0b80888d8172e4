"""A recording: gradients and weights of a short training, step by step, for a comparison with another training.

A run directory with a request in it (``recording/request.json``) is recorded by its ranks. Each rank writes what it
holds of every tensor, of a large one a fixed sample of its elements, into ``recording/rank-00000/``::

    places.safetensors       saved/NAME, copy/NAME: which elements of the sample the rank holds (int64)
    step-000003.safetensors  gradient/NAME, weight/NAME, copy/NAME: their values (float32; float64 stays so)
    about.json               shapes of the whole tensors, what each step was given, what was seen of the model

Step 0 holds the weights before the first step. Names are those of the user's model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from workbench.errors import RunDirectoryError

RECORDING_DIR = "recording"
_REQUEST, _PLACES, _ABOUT = "request.json", "places.safetensors", "about.json"


@dataclass(frozen=True, kw_only=True)
class RecordRequest:
    """How a training is to be recorded.

    ``elements``: how many elements of all gradients together are recorded of a step. ``perturbed``: seed of the signs
    by which every weight is perturbed while gradients are computed (0: not perturbed). ``precision``: the precision
    whose rounding errors the perturbation has the size of.
    """

    elements: int = 2**20
    perturbed: int = 0
    precision: str = "fp32"

    def write(self, run: Path) -> None:
        """Ask the ranks of ``run`` to record."""
        (run / RECORDING_DIR).mkdir(exist_ok=True)
        (run / RECORDING_DIR / _REQUEST).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def of(cls, run: Path) -> RecordRequest | None:
        """The request in a run directory; None where its training is not recorded."""
        file = run / RECORDING_DIR / _REQUEST
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


class RankRecording:
    """The part of a recording that one rank writes, or has written."""

    def __init__(self, run: Path, rank: int) -> None:
        self._directory = run / RECORDING_DIR / f"rank-{rank:05d}"

    def write_step(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the values of a step (0: before the first), under ``gradient/``, ``weight/`` and ``copy/``."""
        self._directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(values), self._step_file(step))

    def write_places(self, places: Mapping[str, np.ndarray]) -> None:
        """Write which elements of each sample the values are, under ``saved/`` and ``copy/``."""
        self._directory.mkdir(parents=True, exist_ok=True)
        save_file(dict(places), self._directory / _PLACES)

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Write everything that is no tensor, as JSON types."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / _ABOUT).write_text(json.dumps(about), encoding="utf-8")

    def step(self, step: int) -> dict[str, np.ndarray]:
        """The values of a step; empty where it was not recorded."""
        file = self._step_file(step)
        return dict(load_file(file)) if file.is_file() else {}

    def places(self) -> dict[str, np.ndarray]:
        """As ``write_places`` was given. ``RunDirectoryError`` when nothing was recorded."""
        file = self._directory / _PLACES
        if not file.is_file():
            raise RunDirectoryError(f"{self._directory} has no recording: did the training make its first step?")
        return dict(load_file(file))

    def about(self) -> dict[str, Any]:
        """As ``write_about`` was given; empty where the training did not come to its end."""
        file = self._directory / _ABOUT
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found

    def _step_file(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.safetensors"
