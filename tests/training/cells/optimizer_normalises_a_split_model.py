"""An optimizer that divides each gradient by its norm: a tensor-parallel rank has a part of it, a stage the whole."""

from tests.training.cells.harness.case import LOSSES_ONLY, Case
from tests.training.cells.optimizer_clips_in_its_step_when_split import CELL

NORMALISES = """for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= parameter.grad.norm() + 1"""
CASE = Case(
    cell=CELL.format(reads=NORMALISES),
    plans=("ddp", "tp", "pp"),
    plain=LOSSES_ONLY,
    refused={"tp": "adds up the elements of gradients"},
)
