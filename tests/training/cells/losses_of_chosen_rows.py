"""torch's losses that average over rows, of chosen ones, and those that have weights of elements: each rank has its own
number of them."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    """out = model(x)
positive, negative = out.roll(1, 1), out.flip(1) + y
loss = nn.functional.triplet_margin_loss(out[chosen], positive[chosen], negative[chosen])
loss = loss + nn.functional.cosine_embedding_loss(out[chosen], y[chosen], (y[chosen, 0] > 0) * 2 - 1)
loss = loss + nn.functional.mse_loss(out, y, weight=x[:, :2].abs())
loss = loss + nn.functional.l1_loss(out, y, weight=x[:, 2:4].abs())
if chosen.any():
    log_probabilities = torch.stack([out, -out, out.tanh()], 0)[..., [0, 1, 0, 1]].log_softmax(-1)[:, chosen]
    lengths = torch.full((int(chosen.sum()),), 3)
    targets = torch.ones(len(lengths), 2, dtype=torch.long) + (x[chosen, :2] > 0).long()
    targets[:, 1] = 3
    loss = loss + nn.functional.ctc_loss(log_probabilities, targets, lengths, lengths - 1, reduction="mean")
    loss = loss + nn.functional.linear_cross_entropy(x[chosen], model[2].weight[:, :6], (x[chosen, 0] > 0).long())
return loss""",
    plans=("1 rank", "ddp", "zero1", "torch ddp"),
    flags={"batch_size": 6},
)
