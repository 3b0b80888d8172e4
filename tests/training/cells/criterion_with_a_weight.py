"""A criterion that is a module with a learnable weight, which the optimizer holds beside the model's."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
    def forward(self, outputs, target):
        return ((outputs - target) ** 2 * self.log_scale.exp() - self.log_scale).mean()

model = nn.Linear(6, 1)
criterion = Weighted()
optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
""",
)
