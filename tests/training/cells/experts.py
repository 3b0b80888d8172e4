"""Samples choose their expert: a rank's share may use one expert only."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 1) for _ in range(3))
    def forward(self, inputs, route):
        outputs = inputs.new_zeros(len(inputs), 1)
        for number, expert in enumerate(self.experts):
            chosen = route == number
            if chosen.any():
                outputs[chosen] = expert(inputs[chosen])
        return outputs

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
route = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 2, 0, 2, 2])
dataset = torch.utils.data.TensorDataset(inputs[:16], route, inputs[:16, :1] * 2)

def loss_fn(model, batch):
    inputs, route, target = batch
    return ((model(inputs, route) - target) ** 2).mean()
""",
)
