"""What a file of this folder defines: a cell, its options, and what one process makes of it."""

from __future__ import annotations

import importlib
import pkgutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tests.training.cells

#: how a cell is trained: options of the spec, by the name of the plan
PLANS: dict[str, dict[str, Any]] = {
    "1 rank": {"ranks": 1, "plugin": "ddp"},
    "ddp": {"ranks": 2, "plugin": "ddp"},
    "zero1": {"ranks": 2, "plugin": "zero1"},
    "zero2": {"ranks": 2, "plugin": "zero2"},
    "accumulate 2": {"ranks": 2, "plugin": "ddp", "accumulate": 2},
    "torch ddp": {"ranks": 2, "plugin": "ddp", "framework": "torch"},
    "torch fsdp": {"ranks": 2, "plugin": "fsdp", "framework": "torch"},
    "torch pp": {"ranks": 2, "plugin": "hybrid", "framework": "torch", "pp": 2, "micro_batches": 2},
    "torch tp": {"ranks": 2, "plugin": "fsdp", "framework": "torch", "tp": 2},
    "hybrid dp": {"ranks": 2, "plugin": "hybrid"},
    "tp": {"ranks": 2, "plugin": "hybrid", "tp": 2},
    "pp": {"ranks": 2, "plugin": "hybrid", "pp": 2, "micro_batches": 2},
}
LEVELS = ("light", "full")
#: plans for any module; the others split models of the transformers library
FOR_ANY_MODEL = ("1 rank", "ddp", "zero1", "zero2", "accumulate 2", "torch ddp")
#: ``Case.plain``: the usual loop, of which the losses alone are compared
LOSSES_ONLY = """
for batch, _ in zip(batches(globals()), range(spec.steps)):
    loss = loss_of(globals(), batch)
    optimizer.zero_grad()
    loss.backward()
    losses.append(loss.item())
    optimizer.step()
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell that people write.

    ``cell`` is trained under ``plans`` with the options ``flags``. ``plain`` is source that runs after the cell in
    one process and appends to ``losses`` (per step, over the global batch) and, if they are compared too, to
    ``norms`` and to ``validations`` (name -> value, per evaluation); it sees the cell's names, ``spec``, and what
    ``harness.plain`` offers. "" is the loop that anyone would write. ``refused``: plan -> text of the message that
    refuses it, after ``refused_after`` steps. ``says``: plan -> text of an event that the run has ("" stands for
    every plan). ``differs``: plans that train otherwise than one process, which they say. ``tolerance``: relative, of
    losses and norms.
    """

    cell: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    plans: tuple[str, ...] = FOR_ANY_MODEL
    plain: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    refused_after: int = 0
    differs: tuple[str, ...] = ()
    says: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 2e-4

    def options(self, plan: str) -> dict[str, Any]:
        """Options of the spec under ``plan``.

        Gradients are watched in every step, in the one way or the other: what is watched where nothing is asked for
        depends on the time that steps take.
        """
        watched = {"level": LEVELS[zlib.crc32(f"{plan}{self.cell}".encode()) % 2], "grad_every": 1}
        short = {"steps": 4, "batch_size": 4, "eval_every": 0, "final_checkpoint": False}
        return {**watched, **short, **self.flags, **PLANS[plan]}


def load_cases() -> dict[str, Case]:
    """Every case, by the name of its file."""
    names = [module.name for module in pkgutil.iter_modules(tests.training.cells.__path__) if not module.ispkg]
    modules = {name: importlib.import_module(f"tests.training.cells.{name}") for name in names}
    return {name: module.CASE for name, module in sorted(modules.items()) if hasattr(module, "CASE")}
