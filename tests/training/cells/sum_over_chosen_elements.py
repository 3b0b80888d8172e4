"""A sum over chosen samples, divided by how many they are, at least 1."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    "return 3 * losses[chosen].sum() / max(1, chosen.sum().item())",
    plans=("ddp", "accumulate 2"),
)
