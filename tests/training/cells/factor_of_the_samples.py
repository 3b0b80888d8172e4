"""A mean times a number that is computed from the samples of a rank: no constant, which an event says."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    "return losses.mean() * (1 + chosen.sum().item())",
    plans=("1 rank", "ddp", "accumulate 2", "torch ddp"),
    differs=("ddp", "accumulate 2", "torch ddp"),
    says={plan: "loss_factor" for plan in ("ddp", "accumulate 2", "torch ddp")},
)
