"""A masked mean whose divisor is 0 on a rank: nothing is added there, neither to the loss nor to the gradient."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    "return (losses * chosen).sum() / chosen.sum() + 0.01 * model[0].weight.square().sum()",
    plans=("ddp", "torch ddp"),
    flags={"batch_size": 6},
)
