"""Two tasks in one loss, each for the samples that have it: a rank without any leaves the term out."""

from tests.training.cells.harness.chosen import chosen_case

CASE = chosen_case(
    """loss = 0.0
if (~chosen).any():
    loss = loss + 0.5 * nn.functional.smooth_l1_loss(model(x)[~chosen, 0], y[~chosen, 0])
if chosen.any():
    loss = loss + 0.7 * losses[chosen].mean()
return loss""",
    plans=("ddp", "zero2", "torch ddp"),
    flags={"batch_size": 6},
)
