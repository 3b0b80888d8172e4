"""Validation over data that do not divide: labels count, not samples; every sample once; batches of uneven sizes."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"eval_every": 2},
    cell="""
import torch
from torch import nn

def answers(lengths, factor):
    found = []
    for index, length in enumerate(lengths):
        tokens = (torch.arange(12) * (index + factor)) % 17
        labels = torch.full((12,), -100)
        labels[:length] = (tokens[:length] * 5 + 1) % 17
        found.append((tokens, labels))
    return found

model = nn.Sequential(nn.Embedding(17, 8), nn.Dropout(0.0), nn.Linear(8, 17))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
dataset = answers([2, 12, 1, 3, 7, 1, 1, 9], 3)
eval_dataset = answers([1, 12, 0, 3, 9], 5)

def loss_fn(model, batch):
    tokens, labels = batch
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100)

def token_accuracy(outputs, batch):
    counted = batch[1] != -100
    return (outputs.argmax(-1) == batch[1])[counted].sum(), counted.sum()

metrics = {
    "token_accuracy": token_accuracy,
    "largest_logit": lambda outputs, batch: outputs.amax((1, 2)),
    "first_token": lambda outputs, batch: batch[0][:, 1].float().mean(),
    "confusion_matrix": lambda outputs, batch: nn.functional.one_hot(batch[0].flatten(), 17).sum(0, keepdim=True),
}
""",
    plain="""
def validate():
    tokens, labels = (torch.stack(column) for column in zip(*eval_dataset))
    outputs = model(tokens).double()
    counted = labels != -100
    return {
        "loss": float(nn.functional.cross_entropy(outputs[counted], labels[counted])),
        "token_accuracy": float((outputs.argmax(-1) == labels)[counted].double().mean()),
        "largest_logit": float(outputs.amax((1, 2)).mean()),
        "first_token": float(tokens[:, 1].double().mean()),
        "confusion_matrix": [torch.bincount(tokens.flatten(), minlength=17).tolist()],
    }

losses, norms = train(globals(), validate)
""",
)
