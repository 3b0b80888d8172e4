"""Means of the cell's own, divided by how many elements they hold, which is 0 on a rank: beside other terms they add
nothing there, neither to the loss nor to the gradient."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    """labels = torch.where(chosen, (x[:, 0] > 0).long(), -100)
loss = losses.mean() + (losses * chosen).sum() / chosen.sum()
loss = loss + losses[chosen].sum().div(chosen.sum().item())
loss = loss + 0.5 * (losses.sqrt() * chosen).mean() / chosen.float().mean()
return loss + nn.functional.cross_entropy(model(x), labels, reduction="sum") / (labels >= 0).sum()""",
    plans=("1 rank", "ddp", "zero1", "torch ddp"),
    flags={"batch_size": 6},
)
