"""Three epochs of a dataset that batches do not divide, a schedule per epoch, two parameter groups."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"epochs": 3, "steps": 0, "eval_every": "1ep"},
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.3)
lr_scheduler_every = "epoch"
inputs = torch.randn(13, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2 + 1)
eval_dataset = torch.utils.data.TensorDataset(inputs[:5], inputs[:5, :1])
criterion = nn.MSELoss()
""",
    plain="""
for epoch in range(3):
    for batch in torch.utils.data.DataLoader(dataset, batch_size=spec.batch_size):
        loss = loss_of(globals(), batch)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    with torch.no_grad():
        validations.append({"loss": float(criterion(model(inputs[:5]), inputs[:5, :1]))})
    lr_scheduler.step()
""",
)
