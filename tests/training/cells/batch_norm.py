"""Batch normalisation: each rank would normalise by its own share of the batch."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    refused=dict.fromkeys(("ddp", "accumulate 2", "torch ddp"), "BatchNorm1d"),
    says=dict.fromkeys(("zero1", "zero2"), "batch normalisation by each rank's share"),
    differs=("zero1", "zero2"),
)
