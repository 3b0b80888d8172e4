"""A backward hook of a module sees its rank's samples, with gradients of another scale: a run says so."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
model[1].register_full_backward_hook(lambda module, inner, outer: (inner[0] * 0.5,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    says=dict.fromkeys(("ddp", "zero1", "zero2", "accumulate 2", "torch ddp"), "backward hook"),
)
