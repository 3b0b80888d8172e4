"""A schedule of the cell's own over two parameter groups."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters()}]
optimizer = torch.optim.AdamW(groups, lr=0.01)
lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.02], total_steps=8)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
