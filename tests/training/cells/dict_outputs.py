"""A model that returns a dict, trained with a criterion over mappings; loss of shape (1,)."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 2)
    def forward(self, x, y):
        return {"scores": self.body(x), "target": y}

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(32, 6)
dataset = [{"x": row, "y": row[:2]} for row in inputs]

def criterion(outputs, batch):
    return ((outputs["scores"] - batch["y"]) ** 2).mean().reshape(1)
""",
)
