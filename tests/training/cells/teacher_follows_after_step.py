"""An averaged teacher that follows the model after each step of the optimizer, and gives the targets."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import copy

import torch
from torch import nn

model = nn.Linear(6, 4)
teacher = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

@torch.no_grad()
def follow(*_):
    for old, new in zip(teacher.parameters(), model.parameters()):
        old.lerp_(new, 0.5)

optimizer.register_step_post_hook(follow)
dataset = torch.randn(32, 6)

def loss_fn(model, batch):
    return ((model(batch) - teacher(batch) - 1) ** 2).mean()
""",
    flags={"steps": 6},
)
