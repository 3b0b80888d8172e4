"""Weights in channels-last format, a transposed one, and one that is a view of a larger tensor."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.randn(5, 27).t())
        self.part = nn.Parameter(torch.randn(6, 3)[::2, 1])
    def forward(self, images):
        hidden = self.conv(images.to(memory_format=torch.channels_last)).tanh()
        return hidden.flatten(1) @ self.turned @ torch.ones(5, 3) * self.part

model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
dataset = torch.utils.data.TensorDataset(torch.randn(16, 2, 3, 3), torch.randn(16, 3))
criterion = nn.MSELoss()
""",
)
