"""A metric that raises is refused before the first step, on all ranks, though only one of them fails."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"eval_every": 2},
    plans=("1 rank", "ddp"),
    cell="""
import torch
from torch import nn

model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = eval_dataset = [(torch.full((3,), index / 10), torch.tensor([0.1])) for index in range(8)]
loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
metrics = {"largest": lambda outputs, batch: 1 / 0 if float(batch[0].min()) == 0 else 1.0}
""",
    refused={plan: "metrics['largest']: ZeroDivisionError: division by zero (rank 0)" for plan in ("1 rank", "ddp")},
)
