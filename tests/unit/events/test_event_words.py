"""Events in words: every event that a run can log is a sentence that needs no knowledge of the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.imports import parsed
from workbench.core import controls
from workbench.core.records import EventKind
from workbench.events.words import LONGEST, setting, words

ROOT = Path(__file__).resolve().parents[3] / "workbench"


@pytest.mark.parametrize(
    ("kind", "name", "value", "old", "text"),
    [
        ("control", "lr", 0.001, 0.003, "learning rate 0.003 → 0.001"),
        ("checkpoint", "resumed_with", {"lr": 0.001}, {"lr": 0.003}, "resumed with learning rate 0.003 → 0.001"),
        ("control", "clip", 0.25, 0.0, "gradient clipping off → 0.25"),
        ("control", "accumulate", 2, 1, "gradient accumulation steps 1 → 2"),
        ("control", "grad_every", 20, "auto",
         "gradient statistics: auto (within the monitoring budget) → every 20 steps"),
        ("control", "log_every", 1, 5, "logging interval: every 5 steps → every step"),
        ("control", "grad_layers", "lm_head", "", "layers watched: all → names matching 'lm_head'"),
        ("control", "pause", "paused", "running", "pause after this step"),
        ("control", "step", 3, "paused", "train 3 steps, then pause"),
        ("control", "stop", "checkpoint", None, "end the run with a checkpoint"),
        ("control", "rollback", 100, 120, "rolled back to step 100, from 120"),
        ("control", "freeze", ["a", "b"], [], "frozen layers: none → a, b"),
        ("control", "branch", {"lr": 1e-4}, None, "branched: a new run continues with lr 1e-4"),
        ("control", "temperature", 2.0, 1.0, "temperature 1 → 2 K"),
        ("refused", "lr", {"value": -3, "reason": "too low"}, None, "lr = -3 was refused: too low"),
        ("refused", "rollback", {"value": 7, "reason": "no such"}, None, "rollback 7 was refused: no such"),
        ("rank", "died", {"rank": 3, "reason": "killed"}, None, "rank 3 died: killed"),
        ("state", "failed", {"ename": "ValueError", "evalue": "no"}, None, "failed: ValueError: no"),
        ("state", "starting", {"pid": 7, "device": "cpu"}, None, "starting"),
        ("monitor", "interval", 20, 10, "gradient statistics: every 10 steps → every 20 steps"),
        ("monitor", "cost", 0.06262, None, "monitoring overhead so far: 6.3 %"),
        ("monitor", "phases", 4, 2, "phase timing: every 4th step"),
        ("monitor", "phases", 1, 2, "phase timing: every step"),
        ("checkpoint", "saved", "step-000100", None, "checkpoint step-000100 was written"),
        ("checkpoint", "restored", "/r/checkpoints/step-000100", None,
         "resumed from checkpoint step-000100"),
        ("data", "batch", {"samples": 8, "unit": "tokens"}, None,
         "global batch: 8 samples; throughput is in tokens"),
        ("spike", "grad_norm", {"value": 3.1, "usual": 0.6, "score": 12.0}, None,
         "the gradient norm spiked to 3.1 (recent median 0.6)"),
        ("nonfinite", "gradient", {"layer": "a", "module": "Linear", "where": "backward", "action": "skip"}, None,
         "a gradient is not finite: it began in a (Linear) in the backward pass; update skipped"),
        ("peak", "flops", {"flops_per_s": 4.57e10, "precision": "fp32", "source": "measured"}, None,
         "peak of the device: 45.7 GFLOP/s, fp32 (measured)"),
        ("peak", "model", {"flops_per_token": 6.4e6, "parameters": 1068112, "formula": "6 N"}, None,
         "model: 1,068,112 parameters, 6.4 MFLOP per token (6 N)"),
        ("peak", "model", {"flops_per_token": "nan", "parameters": 12}, None,
         "model: 12 parameters, unknown FLOP per token"),
        ("loss_scale", "changed", 512.0, 1024.0, "loss scale 1,024 → 512"),
        ("warning", "nonfinite_loss", "nan", None, "the loss is nan"),
        ("warning", "x", "mind the gap", None, "mind the gap"),
        ("of_later", "kind_of_thing", {"a": 1.5}, None, "kind of thing a 1.5"),
    ],
)  # fmt: skip
def test_events_in_words(kind: str, name: str, value: Any, old: Any, text: str) -> None:
    assert words(kind, name, value, old, units={"temperature": "K"}) == text


def logged() -> Iterator[tuple[str, str]]:
    """Kind and name of each ``log.event(EventKind.KIND, "name", ...)`` in the source whose both are written out."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(parsed(path)) if ".event(" in path.read_text(encoding="utf-8") else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "event":
                kind, name, *_ = [*node.args, None, None]
                if isinstance(kind, ast.Attribute) and isinstance(name, ast.Constant):
                    yield EventKind[kind.attr].value, name.value


def test_no_event_of_ours_is_said_by_its_bare_name() -> None:
    """What the source logs has words of its own; ``kind`` and ``name`` alone would be jargon."""
    quiet = {"validation", "sample", "peak", "settings", "layers"}
    found = {pair for pair in logged() if pair[0] not in quiet and pair[1] != "declared"}
    assert len(found) > 15
    jargon = {pair for pair in found if words(*pair, 0.5).startswith(pair[1].replace("_", " ") + " 0.5")}
    assert not jargon
    for control in controls.CONTROLS:
        assert words("control", control.name, 1) != f"{control.name} 1"


def test_a_line_is_a_line_and_settings_have_units() -> None:
    assert len(words("warning", "x", "y" * 1000)) == LONGEST
    assert [setting("grad_every", value) for value in (0, 1, "auto", None)] == [
        "never", "every step", "auto (within the monitoring budget)", "not known",
    ]  # fmt: skip
    assert setting("temperature", 0.5, "K") == "0.5 K"


@pytest.mark.parametrize("value", [None, [], "text", 3, {}, {"layer": None}])
@pytest.mark.parametrize("kind", ["state", "refused", "rank", "nonfinite", "spike", "checkpoint", "data", "monitor"])
def test_a_log_of_anybody_is_said_all_the_same(kind: str, value: Any) -> None:
    for name in ("died", "saved", "batch", "cost", "interval", "loss", "failed", "declared"):
        assert isinstance(words(kind, name, value), str)
        assert isinstance(words("control", name, value, value), str)
