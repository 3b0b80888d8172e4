"""An optimizer that the cell has stepped already: its moments go on."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, inputs):
        return self.last(self.first(inputs).tanh()) * self.scale

model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
for _ in range(3):
    model(inputs).abs().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
)
