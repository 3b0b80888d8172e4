"""An embedding with sparse gradients."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True, mode="sum"))
optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.05)
tokens = torch.arange(64).reshape(16, 4) % 20
dataset = torch.utils.data.TensorDataset(tokens, torch.randn(16, 4))
criterion = nn.MSELoss()
""",
    refused={"zero1": "sparse gradients", "zero2": "sparse gradients"},
)
