"""A masked mean, written as a mean divided by the mean of the mask."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    "return 2 * (losses * chosen).mean() / chosen.float().mean()",
    plans=("ddp", "accumulate 2"),
    flags={"batch_size": 8},
)
