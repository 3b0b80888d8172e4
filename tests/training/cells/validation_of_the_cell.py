"""``evaluate(model, loader)`` over an own loader, beside dropout: validation leaves random numbers and modes alone."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"eval_every": 2},
    plans=("1 rank",),
    cell="""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
inputs = torch.sin(torch.arange(104.0)).view(26, 4)
dataset = TensorDataset(inputs[:16], (inputs[:16].sum(1) > 0).long())
eval_dataloader = DataLoader(TensorDataset(inputs[16:], (inputs[16:].sum(1) > 0).long()), batch_size=3, shuffle=True)

def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def evaluate(model, loader):
    torch.rand(3)
    right, count = 0, 0
    for x, y in loader:
        right += (model(x).argmax(-1) == y).sum()
        count += len(y)
    return {"accuracy": (right, count), "samples": (count, 1)}

def sample(model):
    return f"mean weight {float(model[0].weight.mean()):.3f}, {torch.rand(1).item():.3f}"
""",
    plain="""
def validate():
    x, y = eval_dataloader.dataset.tensors
    return {"accuracy": float((model(x).argmax(-1) == y).double().mean()), "samples": 10}

losses, norms = train(globals(), validate)
""",
)
