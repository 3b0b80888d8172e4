"""One rank's share has ignored labels only: its own mean would be 0 / 0."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 3)
criterion = nn.CrossEntropyLoss(ignore_index=7)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
labels = torch.tensor([0, 1, 7, 7, 7, 7, 2, 1, 7, 2, 7, 7, 1, 1, 0, 7])
dataset = torch.utils.data.TensorDataset(torch.randn(16, 6), labels)
""",
)
