"""Sums of the cell's own, beside one of torch's: the loss of the batch is the sum over all pieces."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    'return 0.1 * losses.sum() + 0.01 * nn.functional.l1_loss(model(x), y, reduction="sum")',
    plans=("ddp", "accumulate 2"),
)
