"""Which variables of a cell a checkpoint holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from workbench.engine.state.cell_state import CellState
from workbench.errors import ConfigError


def gan() -> dict[str, Any]:
    """Two networks, an averaged one beside them, an optimizer and a schedule for each."""
    g, d, teacher = (torch.nn.Linear(2, 2) for _ in range(3))
    of_g, of_d = (torch.optim.Adam(network.parameters()) for network in (g, d))
    schedules = [torch.optim.lr_scheduler.StepLR(each, 5) for each in (of_g, of_d)]
    names = {"g": g, "d": d, "teacher": teacher, "of_g": of_g, "of_d": of_d, "of_rate": schedules[0], "history": []}
    return {**names, "model": torch.nn.ModuleDict({"g": g, "d": d}), "lr_scheduler": schedules}


def test_what_the_training_saves_by_itself_is_not_saved_again() -> None:
    names = gan()
    of_g, of_d = names["of_g"], names["of_d"]
    for optimizers in ({"optimizer": {"g": of_g, "d": of_d}}, {"optimizers": [of_g, of_d]}):
        defined = {**names, **optimizers}
        state = CellState(defined, defined)
        assert state.names == ["teacher"]
        assert state.left_out == []
        names["history"].append(0.5)
        assert state.left_out == ["history"]
        names["history"].clear()


def test_what_a_cell_declares_is_not_told_as_lost() -> None:
    defined = {
        "pretrained": "models/small", "lora": {"r": 8}, "tokenizer": object(), "metrics": {"accuracy": len},
        "dataset": [{"x": torch.ones(2)}], "queue": [],
    }  # fmt: skip
    state = CellState(defined, defined)
    for value in (defined["lora"], defined["dataset"], defined["queue"]):
        value.clear()
    assert (state.names, state.left_out) == ([], [])
    defined["queue"].append(1)
    assert (state.names, state.left_out) == ([], ["queue"])


class Counter:
    """An object with a number, and one with a list."""

    def __init__(self) -> None:
        self.seen = 0
        self.scores: dict[str, list[float]] = {"a": [float("nan")]}


def test_only_what_a_training_has_changed_is_told_as_lost() -> None:
    data = [torch.zeros(3) for _ in range(5000)]
    defined = {
        "data": data, "vocabulary": {f"w{n}": n for n in range(5000)}, "array": np.zeros(10**6), "counter": Counter(),
        "scores": Counter(), "seen": set(), "tensors": {"mean": torch.zeros(3)}, "loop": [], "model": torch.nn.ReLU(),
    }  # fmt: skip
    defined["loop"].append(defined["loop"])
    state = CellState(defined, defined)
    assert state.left_out == []
    defined["counter"].seen += 1
    defined["scores"].scores["a"].append(0.5)
    defined["seen"].add(3)
    defined["tensors"]["mean"] += 1
    assert state.left_out == ["counter", "scores", "seen", "tensors"]
    data[-1] = torch.zeros(3)
    defined["array"][-1] = 1.0
    defined["vocabulary"] = dict(defined["vocabulary"])
    assert state.left_out == ["data", "array", "counter", "scores", "seen", "tensors"]


def test_a_text_is_no_list_of_names() -> None:
    defined = {"state": "teacher", "teacher": torch.nn.Linear(2, 2)}
    with pytest.raises(ConfigError, match=r"state is a list of names, such as \['teacher'\]"):
        CellState(defined, defined)
