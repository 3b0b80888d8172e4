"""An embedding whose padding has no gradient, gradients scaled by frequency, and dropout of nothing."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 8, padding_idx=0)
        self.head = nn.Linear(8, 17)
    def forward(self, tokens):
        hidden = nn.functional.dropout(self.embed(tokens), p=0.0, training=True)
        return self.head(hidden.tanh()).transpose(1, 2)

model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
tokens = torch.arange(96).reshape(16, 6) ** 2 % 17
tokens[:8, 2:] = 0
dataset = torch.utils.data.TensorDataset(tokens, (tokens * 3) % 17)
criterion = nn.CrossEntropyLoss(ignore_index=0)
""",
)
