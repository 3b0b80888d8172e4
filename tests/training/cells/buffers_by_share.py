"""A running mean of the cell's own, changed by each rank's samples in the forward pass: it is told."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("fixed", torch.ones(6))
        self.linear = nn.Linear(6, 1)
    def forward(self, inputs):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
        return self.linear((inputs - self.mean) * self.fixed)

model = Centred()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    plans=("1 rank", "ddp", "zero1"),
    differs=("ddp", "zero1"),
    says=dict.fromkeys(("ddp", "zero1"), "the forward pass changes buffers (mean) by the samples of each rank"),
)
