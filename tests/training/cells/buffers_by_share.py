"""A running mean and a tensor beside the model, changed by each rank's samples in the forward pass and the loss: they
are told. What all ranks change alike, as an averaged teacher, is not."""

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
centres = torch.zeros(2, 6)
teacher = nn.Linear(6, 1).requires_grad_(False)
def loss_fn(model, batch):
    with torch.no_grad():
        teacher.weight.lerp_(model.linear.weight, 0.1)
        centres[0] += batch[0].mean(0)
    return nn.functional.mse_loss(model(batch[0]), batch[1]) + 0.1 * (model.linear.weight - centres[0]).square().sum()
""",
    plans=("1 rank", "ddp", "zero1"),
    differs=("ddp", "zero1"),
    says=dict.fromkeys(
        ("ddp", "zero1"), "the forward pass or the loss changes mean, centres by the samples of each rank"
    ),
)
