"""An optimizer that normalises the update by the norm of the whole weight."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Lamb(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.norm() / (p.grad.norm() + 1e-6) * p.grad

model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
optimizer = Lamb(model.parameters())
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    refused={"zero1": "reads whole weights", "zero2": "reads whole weights"},
)
