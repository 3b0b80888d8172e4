"""A model that returns a dataclass, several losses, and a part without gradient."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import dataclasses

import torch
from torch import nn

@dataclasses.dataclass
class Output:
    scores: torch.Tensor
    hidden: torch.Tensor

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 4)
        self.head = nn.Linear(4, 1)
    def forward(self, x):
        hidden = self.body(x)
        with torch.no_grad():
            scale = hidden.abs().amax(1, keepdim=True)
        return Output(self.head(hidden / scale), hidden)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

def criterion(output, target):
    wide = target.expand(-1, 4)
    return nn.functional.mse_loss(output.scores, target) + 0.1 * nn.functional.l1_loss(output.hidden, wide)
""",
)
