"""A small GAN: two models, two optimizers, one of which is stepped twice; the last batch of an epoch is uneven."""

from tests.training.cells.harness.steps import step_case

CASE = step_case(
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.ModuleDict({
    "g": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
    "d": nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(), nn.Linear(8, 1)),
})
optimizer = {
    "g": torch.optim.Adam(model["g"].parameters(), lr=0.01, betas=(0.5, 0.9)),
    "d": torch.optim.RMSprop(model["d"].parameters(), lr=0.02),
}
lr_scheduler = [torch.optim.lr_scheduler.StepLR(each, 2, gamma=0.5) for each in optimizer.values()]
dataloader = DataLoader(TensorDataset(torch.randn(19, 2) + 1, torch.randn(19, 3)), batch_size=8)
judged = lambda logits, real: nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

def train_step(model, optimizer, batch):
    real, noise = batch
    for _ in range(2):
        optimizer["d"].zero_grad()
        with torch.no_grad():
            fake = model["g"](noise)
        judged(model["d"](real), 1.0).backward()   # two backward passes that add up
        loss_d = judged(model["d"](fake), 0.0)
        loss_d.backward()
        nn.utils.clip_grad_norm_(model["d"].parameters(), 0.3)
        optimizer["d"].step()
    optimizer["g"].zero_grad()
    loss_g = judged(model["d"](model["g"](noise)), 1.0)
    loss_g.backward()                              # gives the discriminator gradients too, which nobody uses
    optimizer["g"].step()
    return {"g": loss_g, "d": loss_d}
""",
    flags={"steps": 7},
    plain="""
for batch, _ in zip(batches(globals()), range(spec.steps)):
    found = train_step(model, optimizer, batch)
    losses.append(float(sum(found.values())))
    for each in lr_scheduler:
        each.step()
""",
)
