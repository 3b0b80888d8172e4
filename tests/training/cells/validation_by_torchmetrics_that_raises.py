"""A metric of torchmetrics whose arguments are not known is refused before the first step, with what to give."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"eval_every": 2},
    plans=("1 rank", "ddp"),
    cell="""
import torch
from torch import nn
from torchmetrics.classification import BinaryAccuracy

model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = eval_dataset = [{"x": torch.full((3,), index / 10), "y": torch.tensor([1])} for index in range(8)]
loss_fn = lambda model, batch: (model(batch["x"]) - batch["y"]).square().mean()
metrics = {"accuracy": BinaryAccuracy()}
""",
    refused={
        plan: "metrics['accuracy']: a dict: which part the metric takes is not known" for plan in ("1 rank", "ddp")
    },
)
