"""``loss_fn`` calls methods and parts of the model instead of the model itself."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 1)
    def loss(self, inputs, targets):
        return ((self.head(self.body(inputs).relu()) - targets) ** 2).mean()

model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

def loss_fn(model, batch):
    return model.loss(*batch) + 0.01 * model.body(batch[0]).pow(2).mean()
""",
)
