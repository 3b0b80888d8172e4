"""A frozen body in evaluation mode: its dropout stays off, and the statistics of its norm stay as they are."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

body = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.ReLU())
body.requires_grad_(False).eval()
model = nn.Sequential(body, nn.Linear(16, 1))
optimizer = torch.optim.SGD(model[1].parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
