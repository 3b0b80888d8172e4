"""A mean of the cell's own over chosen samples: a share without any is no NaN."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    "return losses[chosen].mean()",
    plans=("ddp", "accumulate 2", "torch ddp"),
)
