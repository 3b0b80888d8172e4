"""Two layers with one weight."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 8)
        self.head = nn.Linear(8, 17, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, tokens):
        return self.head(self.embed(tokens).tanh()).flatten(0, 1)

model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
tokens = torch.arange(96).reshape(16, 6) % 17
dataset = torch.utils.data.TensorDataset(tokens, (tokens * 3) % 17)

def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1].flatten())
""",
)
