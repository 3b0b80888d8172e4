"""Adafactor, whose second moment is factored over a weight's rows and columns."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from transformers.optimization import Adafactor

model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
optimizer = Adafactor(model.parameters(), lr=0.01, relative_step=False, scale_parameter=False, warmup_init=False)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    refused={"zero1": "reads whole weights", "zero2": "reads whole weights"},
)
