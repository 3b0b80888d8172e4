"""Workers that live on from epoch to epoch, two batches ahead of the training."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)
dataloader = DataLoader(
    TensorDataset(inputs, inputs[:, :1] * 2), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True
)
criterion = nn.MSELoss()
""",
    flags={"steps": 10},
)
