"""Random generators beside those of the process: what a framework keeps inside the model, and a cell's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class ModuleGenerator(Protocol):
    """A random generator that a framework keeps inside a module of the model, or that a cell made."""

    def states(self) -> Mapping[str, torch.Tensor]:
        """Its states by a name of the generator's own."""

    def reseed(self, offset: int) -> None:
        """Begin anew with the seed that it has, plus ``offset``."""

    def restore(self, states: Mapping[str, torch.Tensor]) -> None:
        """Undo ``states``."""
