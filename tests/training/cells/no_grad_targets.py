"""Targets of a frozen teacher, computed without gradient inside the loss."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

teacher = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval().requires_grad_(False)
model = nn.Linear(6, 3)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
dataset = [{"inputs": row} for row in torch.randn(16, 6)]

def loss_fn(model, batch):
    with torch.no_grad():
        target = teacher(batch["inputs"]).softmax(1)
    scores = model(batch["inputs"]).log_softmax(1)
    return nn.functional.kl_div(scores, target, reduction="batchmean")
""",
)
