"""A generator that can be read once, and lasts for the steps."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(18, 6)
dataset = ((row, row[:1] * 2) for row in inputs)
criterion = nn.MSELoss()
""",
    says={"": "the dataset is a generator, which can be read once: it has to last for all steps"},
    plain="dataset = list(dataset)\nlosses, norms = train(globals())",
)
