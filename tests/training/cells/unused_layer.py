"""A layer that no step uses: it gets no gradient, and nothing is wrong."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 1)
        self.spare = nn.Linear(6, 6)
    def forward(self, inputs):
        return self.body(inputs)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    says={"": "spare"},
)
