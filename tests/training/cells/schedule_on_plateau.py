"""A schedule that is given the validation loss, over two groups with rates of their own."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"steps": 12, "eval_every": 2},
    cell="""
import torch
from torch import nn

model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 1))
groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[1].parameters()}]
optimizer = torch.optim.SGD(groups, lr=0.1)
lr_scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.2)
lr_scheduler_metric = "validation_loss"
inputs = torch.randn(32, 6)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * 2)
eval_dataset = torch.utils.data.TensorDataset(inputs[:7], -inputs[:7, :1])
criterion = nn.MSELoss()
""",
    plain="""
def validate():
    value = float(criterion(model(inputs[:7]), -inputs[:7, :1]))
    lr_scheduler.step(value)
    return {"loss": value}

names = {**globals(), "lr_scheduler": None}
losses, norms = train(names, validate)
assert optimizer.param_groups[0]["lr"] < 0.3
""",
)
