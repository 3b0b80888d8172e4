"""The loss changes the rows of a weight that its samples use."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Embedding(17, 8), nn.Linear(8, 17))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
tokens = torch.arange(16) ** 2 % 17
dataset = torch.utils.data.TensorDataset(tokens, (tokens * 3) % 17)

def loss_fn(model, batch):
    with torch.no_grad():
        model[0].weight[batch[0]] *= 0.9
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
""",
    plans=("1 rank", "ddp", "zero1", "zero2", "torch ddp"),
    refused={
        "ddp": "in a different way on each rank",
        "torch ddp": "in a different way on each rank",
        "zero1": "changes weights in place",
        "zero2": "changes weights in place",
    },
)
