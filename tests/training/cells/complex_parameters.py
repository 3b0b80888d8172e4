"""A complex parameter."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, dtype=torch.complex64))
    def forward(self, inputs):
        return torch.view_as_real(inputs.to(torch.complex64) @ self.weight).flatten(1)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :4])
criterion = nn.MSELoss()
""",
    refused={"zero1": "is complex", "zero2": "is complex"},
)
