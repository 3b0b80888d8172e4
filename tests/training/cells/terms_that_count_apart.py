"""Means over all samples and over chosen ones, labels of which some are ignored, and a sum in one loss: each counts by
itself, and one that has nothing on a rank adds nothing there."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    """labels = torch.where(chosen, (x[:, 0] > 0).long(), -100)
loss = nn.functional.cross_entropy(model(x), labels) / 3
loss = loss + losses.mean() - 0.2 * losses[chosen].mean() + 0.01 * model[0].weight.square().sum()
loss = 0.5 * loss + nn.functional.l1_loss(model(x)[chosen], y[chosen])
return loss + 0.1 * nn.functional.mse_loss(model(x), y, reduction="sum")""",
    plans=("1 rank", "ddp", "zero1", "torch ddp", "accumulate 2"),
    differs=("accumulate 2",),
    says={"accumulate 2": "loss_by_samples"},
)
