"""Cross entropy with a weight per class: one process divides by the sum of the weights of the labels."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 3)
criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 7.0]), label_smoothing=0.1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
dataset = torch.utils.data.TensorDataset(torch.randn(32, 6), torch.arange(32) ** 2 % 3)
""",
)
