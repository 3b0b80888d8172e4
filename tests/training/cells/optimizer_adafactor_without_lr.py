"""Adafactor that sets its rate itself: there is none to schedule, to show or to change, so it is asked for."""

from tests.training.cells.harness.case import Case
from tests.training.cells.optimizer_adafactor import CASE as WITH_LR

CASE = Case(
    cell=WITH_LR.cell.replace("lr=0.01, relative_step=False, scale_parameter=False, warmup_init=False", "lr=None"),
    plans=("1 rank", "ddp", "torch ddp"),
    refused=dict.fromkeys(("1 rank", "ddp", "torch ddp"), "lr"),
)
