"""Tasks whose labels are missing for some samples, in a loop and by a helper: a rank that lacks a task takes no
other one for it."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.heads = nn.ModuleDict({f"task{number}": nn.Linear(8, 1) for number in range(3)})
    def forward(self, inputs):
        hidden = self.body(inputs).tanh()
        return {name: head(hidden)[:, 0] for name, head in self.heads.items()}

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
inputs = torch.randn(32, 6)
targets = inputs[:, :3].clone()
for task, every in enumerate((5, 3, 4)):
    targets[torch.arange(32) % every != task, task] = float("nan")
dataset = torch.utils.data.TensorDataset(inputs, targets)

def masked(outputs, target):
    mask = ~target.isnan()
    return F.mse_loss(outputs[mask], target[mask]) if mask.any() else 0.0

def loss_fn(model, batch):
    inputs, targets = batch
    found = model(inputs)
    loss = masked(found["task0"], targets[:, 0]) + 2 * masked(found["task1"], targets[:, 1])
    for number, outputs in enumerate(found.values()):
        mask = ~targets[:, number].isnan()
        if mask.any():
            loss = loss + F.smooth_l1_loss(outputs[mask], targets[mask, number])
    return loss + 0.1 * found["task2"].abs().mean()
""",
    plans=("ddp", "zero1", "torch ddp", "accumulate 2"),
    flags={"batch_size": 8},
    differs=("accumulate 2",),
    says={"accumulate 2": "loss_by_samples"},
)
