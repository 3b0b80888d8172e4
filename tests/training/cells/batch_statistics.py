"""A deviation over the batch is that of each rank's samples, which is told."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    "return losses.mean() + torch.relu(1 - model(x).std(0)).mean()",
    plans=("1 rank", "ddp"),
    differs=("ddp",),
    says={"ddp": "the loss is made of a statistic over the samples"},
)
