"""Optimizers that step inside backward, one for each weight of the body, to save memory."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
own = {p: torch.optim.SGD([p], lr=0.02) for p in model[0].parameters()}

def update(parameter):
    own[parameter].step()
    own[parameter].zero_grad()

for parameter in own:
    parameter.register_post_accumulate_grad_hook(update)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    refused=dict.fromkeys(("zero1", "zero2"), "has a hook after its gradient"),
)
