"""An optimizer that clips the gradients of the model in its own step, by the model and not by its groups."""

from tests.training.cells.harness.case import LOSSES_ONLY, Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Clipping(torch.optim.SGD):
    def step(self, closure=None):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return super().step(closure)

model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
optimizer = Clipping(model.parameters(), lr=0.5, momentum=0.9)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
criterion = nn.MSELoss()
""",
    plans=("1 rank", "ddp", "zero1", "zero2"),
    plain=LOSSES_ONLY,
    refused=dict.fromkeys(("zero1", "zero2"), "Clipping.step reads .grad of the model's weights"),
)
