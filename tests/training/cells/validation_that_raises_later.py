"""What only watches ends no training: a metric that raises in the middle is told, and the others have values."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"eval_every": 2},
    plans=("ddp",),
    cell="""
import torch
from torch import nn

model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = [(torch.full((3,), index / 10), torch.tensor([0.1])) for index in range(8)]
eval_dataset = [(torch.full((3,), index / 5), torch.tensor([0.1])) for index in range(6)]
loss_fn = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
calls = []

def grows(outputs, batch):
    calls.append(len(batch[0]))
    return outputs.new_ones(2, 2, 2) if len(calls) > 2 else 1.0

metrics = {"grows": grows, "target": lambda outputs, batch: batch[1].mean()}
""",
    plain="""
def validate():
    loss = float(loss_fn(model, [torch.stack(column) for column in zip(*eval_dataset)]))
    return {"loss": loss, "target": 0.1}

losses, norms = train(globals(), validate)
""",
    says={"": "metrics['grows']: it returned a tensor of shape (2, 2, 2): return a number"},
)
