"""``loss_fn`` returns a loss of shape (1,), and outputs are a tuple."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 1)
    def forward(self, inputs):
        hidden = self.body(inputs)
        return self.head(hidden.relu()), (hidden, None)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(16, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)

def loss_fn(model, batch):
    scores, (hidden, _) = model(batch[0])
    return ((scores - batch[1]) ** 2).mean(0) + 0.01 * hidden.square().mean()
""",
)
