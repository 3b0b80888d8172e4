"""A cell that converts its model with torch's ``convert_sync_batchnorm``, as scripts for GPUs do."""

from tests.training.cells.batch_norm import MODEL
from tests.training.cells.harness.case import Case

CASE = Case(
    cell=f"{MODEL}\nmodel = nn.SyncBatchNorm.convert_sync_batchnorm(model)\n",
    flags={"batch_size": 8},
    plans=("1 rank", "ddp", "zero2", "torch ddp"),
)
