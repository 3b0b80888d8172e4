"""What ranks of the tests of own steps do: train while a script applies commands after chosen steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.training.cells.harness import ranks as harness
from workbench.core.records import Command
from workbench.engine.loop.acts import Boundary
from workbench.engine.loop.steering import Steering


def train(rank: int, ranks: int, directory: Path, *, run: str, script: dict[str, list[list[Any]]]) -> str:
    """As ``ranks.train``; ``script``: step -> name and value of the commands that are applied after it, once."""
    original = Steering.boundary

    def boundary(self: Steering, step: int) -> Boundary:
        here = original(self, step)
        commands = [Command(time=0.0, name=name, value=value) for name, value in script.pop(str(step), [])]
        self._apply_all(commands, here)
        return here

    Steering.boundary = boundary  # type: ignore[method-assign]
    try:
        return harness.train(rank, ranks, directory, run=run)
    finally:
        Steering.boundary = original  # type: ignore[method-assign]
