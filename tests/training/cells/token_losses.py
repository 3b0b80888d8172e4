"""Cross entropy over the tokens of an answer: a piece of the batch counts by its labels, not by its samples."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

answers = [2, 12, 1, 3, 7, 1, 1, 9]
model = nn.Sequential(nn.Embedding(17, 8), nn.Linear(8, 17))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
dataset = []
for index, length in enumerate(answers):
    tokens = (torch.arange(12) * (index + 3)) % 17
    labels = torch.full((12,), -100)
    labels[:length] = (tokens[:length] * 5 + 1) % 17
    dataset.append((tokens, labels))

def loss_fn(model, batch):
    tokens, labels = batch
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100)
""",
)
