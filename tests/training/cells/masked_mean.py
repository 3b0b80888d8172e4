"""A mean by a mask of the cell's own, beside a penalty on weights: one piece holds nothing."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    """penalty = 0.01 * model[0].weight.square().sum()
return (losses * chosen).sum() / chosen.sum().clamp(min=1) + penalty""",
    plans=("ddp", "zero1", "accumulate 2"),
)
