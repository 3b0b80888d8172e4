"""A mean over the elements that a mask chooses: pieces hold different numbers of them, and one holds none."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
inputs = torch.randn(32, 6)
is_valid = torch.arange(32) % 5 != 1
is_valid[:3] = False
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :2], is_valid)

def loss_fn(model, batch):
    inputs, targets, is_valid = batch
    return nn.functional.mse_loss(model(inputs)[is_valid], targets[is_valid])
""",
    plans=("ddp", "zero1", "accumulate 2", "torch ddp"),
)
