"""The function that makes a generator in place of the generator."""

from tests.training.cells.harness.case import FOR_ANY_MODEL, Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

def dataset():
    while True:
        row = torch.randn(6)
        yield row, row[:1] * 2

criterion = nn.MSELoss()
""",
    refused=dict.fromkeys(FOR_ANY_MODEL, "dataset is a function"),
)
