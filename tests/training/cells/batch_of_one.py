"""Batches of one sample: one of two ranks never has any."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
inputs = torch.randn(6, 6)
dataloader = DataLoader(TensorDataset(inputs, inputs[:, :1] * 2), batch_size=1)
criterion = nn.MSELoss()
""",
)
