"""What the ranks of the pool are asked: to train a run directory, and to run the plain loop of a cell."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from workbench.core.config import TrainSpec


def train(rank: int, ranks: int, directory: Path, *, run: str) -> str:
    """Train the run in ``run`` as ``%dist_train`` has ranks do; the outcome as text."""
    from workbench.engine.entry import train as train_run

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    return train_run(run)


def save_restored(rank: int, ranks: int, directory: Path, *, run: str) -> str:
    """As ``train``, but what is resumed is saved at once, without a step."""
    from workbench.engine.loop.trainer import Trainer

    def run_nothing(trainer: Trainer) -> str:
        trainer.save(trainer.begin(), asked=True)
        return "finished"

    original = Trainer.run
    Trainer.run = run_nothing  # type: ignore[method-assign]
    try:
        return train(rank, ranks, directory, run=run)
    finally:
        Trainer.run = original  # type: ignore[method-assign]


def plain(rank: int, ranks: int, directory: Path, *, cell: str, loop: str, options: dict[str, Any]) -> dict[str, Any]:
    """Losses, gradient norms and validations of the cell in one process; nothing of the workbench trains."""
    import torch

    from tests.training.cells.harness import plain as helpers

    spec = TrainSpec.from_options(options)
    helpers.seed(spec.seed)
    names: dict[str, Any] = {"spec": spec, "knob": lambda name, value, *rest, **more: value, "__name__": "__main__"}
    exec(compile(cell, "<cell>", "exec"), names)
    names |= {
        "torch": torch,
        "losses": [],
        "norms": [],
        "validations": [],
        **{name: getattr(helpers, name) for name in helpers.__all__},
    }
    exec(compile(loop or "losses, norms = train(globals())", "<loop>", "exec"), names)
    numbers = {name: [float(number) for number in names[name]] for name in ("losses", "norms")}
    return {**numbers, "validations": names["validations"]}


def replay(rank: int, ranks: int, directory: Path, *, run: str, step: int, first: int) -> dict[str, Any]:
    """What the replay of a step of the replica that begins with rank ``first`` found, as ``%dist_replay`` has ranks
    do."""
    from workbench.engine.replay import replay as replay_step
    from workbench.rundir.kept_steps import REPLAY_FILE, fault_directory

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
    replay_step(run, step, first, rank, "replay")
    return json.loads((fault_directory(run, first + rank, step) / REPLAY_FILE).read_text())
