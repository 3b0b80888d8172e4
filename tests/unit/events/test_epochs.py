"""Epochs and the last step, from what was logged of the data."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from workbench.core.columns import Columns
from workbench.events.epochs import EpochProgress
from workbench.events.words import words


def events(*rows: tuple[int, str, dict[str, Any]]) -> Columns:
    return {
        "time": np.zeros(len(rows)),
        "step": np.array([step for step, _, _ in rows], dtype=int),
        "rank": np.zeros(len(rows), dtype=int),
        "kind": np.array(["data"] * len(rows), dtype=object),
        "name": np.array([name for _, name, _ in rows], dtype=object),
        "value": np.array([json.dumps(value) for _, _, value in rows], dtype=object),
    }


def told(done: float, length: int | None = 10, steps: int | None = 30, end: int | None = 30) -> dict[str, Any]:
    return {"epochs": 3, "steps_per_epoch": length, "done": done, "steps": steps, "end_of_epochs": end}


def test_a_run_that_counts_none() -> None:
    progress = EpochProgress().take(events((0, "batch", {"samples": 4})))
    assert progress.words(5) == ""
    assert progress.last_step(100) == 100
    assert progress.fraction(5, 100) == 0.05


def test_epochs_of_known_length() -> None:
    progress = EpochProgress().take(events((0, "epochs", told(0))))
    assert progress.words(15) == "epoch 1.5 of 3"
    assert progress.last_step(0) == 30
    assert progress.fraction(15, 0) == 0.5


def test_another_batch_size_after_a_resume() -> None:
    progress = EpochProgress().take(events((4, "epochs", told(0.5, length=20, steps=54, end=54))))
    assert progress.at(14) == 1.0


def test_epochs_whose_length_only_reading_tells() -> None:
    progress = EpochProgress().take(events((0, "epochs", told(0, None, None, None))))
    assert progress.words(15) == "epoch 0 of 3"
    assert progress.last_step(0) == 0
    progress.take(events((20, "epoch", told(1, 20, None, None))))
    assert progress.words(30) == "epoch 1.5 of 3"
    assert math.isclose(progress.fraction(30, 0), 0.5)


def test_in_words() -> None:
    assert words("data", "epochs", told(0)) == "3 epochs of 10 steps: the run ends with step 30"
    first = words("data", "epochs", told(0, steps=25))
    assert first == "3 epochs of 10 steps, which would end with step 30: step 25 comes first and ends the run"
    assert words("data", "epochs", told(0, None, None, None)) == "3 epochs of as many steps as the data give"
    assert words("data", "epoch", told(2)) == "epoch 2 of 3 is done"
    assert words("state", "finished", "loss < 1: it is 0.5") == "finished: loss < 1: it is 0.5"
    assert words("checkpoint", "best", {"name": "accuracy", "value": 0.5}) == "best checkpoint: accuracy 0.5"
