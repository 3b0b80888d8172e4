"""A warm-up, then a cosine, then restarts; and rates of its own for each group."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
optimizer = torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.2}], lr=0.1)
parts = [
    schedules.LinearLR(optimizer, 0.1, total_iters=2),
    schedules.CosineAnnealingLR(optimizer, T_max=3),
    schedules.CosineAnnealingWarmRestarts(optimizer, T_0=2),
]
lr_scheduler = schedules.SequentialLR(optimizer, parts, milestones=[2, 5])
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    flags={"steps": 8},
)
