"""An embedding that shortens the rows it looks up: each rank would shorten those of its own samples."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Embedding(17, 8, max_norm=1.0), nn.Linear(8, 17))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
tokens = torch.arange(16) ** 2 % 17
dataset = torch.utils.data.TensorDataset(tokens, (tokens * 3) % 17)
criterion = nn.CrossEntropyLoss()
""",
    refused=dict.fromkeys(("ddp", "zero1", "zero2", "accumulate 2", "torch ddp"), "max_norm"),
)
