"""Sums of weighted losses, as products of vectors, divided by the weights or by the samples: a rank whose weights
are all 0 has its samples all the same."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    """loss = torch.dot(losses, chosen.float()) / chosen.sum() + (chosen.float() @ losses.sqrt()) / len(x)
return loss + (losses.exp().clamp(max=3) * chosen).sum() / x.shape[0]""",
    plans=("1 rank", "ddp", "zero1", "torch ddp"),
    flags={"batch_size": 6},
)
