"""Epochs of a shuffling dataloader with a generator of its own, whose order only reading tells."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"epochs": 2, "steps": 0, "eval_every": 0},
    plans=("1 rank", "ddp", "torch ddp"),
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.randn(10, 6)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
generator = torch.Generator().manual_seed(3)
dataloader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=generator)
criterion = nn.MSELoss()
means = []

def on_epoch(epoch, values):
    means.append(values["loss"])
    assert epoch == len(means)

def on_step(step, values):
    assert values["lr"] == 0.1 and values["loss"] > 0 and not values["skipped"]
    assert step <= 6
""",
    plain="""
for epoch in range(2):
    for batch in dataloader:
        loss = loss_of(globals(), batch)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
""",
)
