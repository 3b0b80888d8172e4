"""The course notebook on a model of one's own, with few steps: validated, fine-tuned, read again."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest


def test_a_model_of_ones_own_comes_back_into_the_notebook(execute, few_figures: None) -> None:
    runs, executed = execute("05_your_own_model.ipynb", epochs=12, language_steps=40)
    assert set(runs) == {"digits", "base", "poems"} and {run.status for run in runs.values()} == {"finished"}
    digits = runs["digits"]
    validation = digits.events().query("kind == 'validation' and name == 'loss'")
    best = validation.loc[validation["value"].astype(float).idxmin(), "step"]
    assert (digits.path / "checkpoints" / "best").exists() and best < digits.last_step
    accuracy = digits.events().query("kind == 'validation' and name == 'accuracy'")["value"].astype(float)
    assert accuracy.max() > 0.93
    pictures = [each for each in digits.media() if each.kind == "image"]
    assert len(pictures) == len(validation) and all(Path(each.file).stat().st_size > 500 for each in pictures)

    tuned = runs["poems"]
    assert (tuned.spec.plan.tp, tuned.plan.ranks) == (2, 2)
    assert tuned.metrics()["loss"].iloc[-1] < tuned.metrics()["loss"].iloc[0] - 0.1
    (shown,) = [cell for cell in nbformat.read(executed, 4).cells if "losses = {}" in cell.source]
    losses = ast.literal_eval(shown.outputs[0]["data"]["text/plain"])
    assert losses["models/poems"] < losses["models/base"] - 0.1
    assert losses["models/base"] == pytest.approx(tuned.metrics()["loss"].iloc[0], abs=0.3), (
        "it began from these weights"
    )
