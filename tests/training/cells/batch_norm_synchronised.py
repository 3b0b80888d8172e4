"""``--sync-batchnorm``: normalised by the whole batch, also where the last batch of an epoch leaves a rank without."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from torch.utils.data import DataLoader

model = nn.Sequential(
    nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4, momentum=None),
    nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4, affine=False), nn.Flatten(), nn.Linear(16, 1),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(13, 2, 6)
samples = torch.utils.data.TensorDataset(inputs, inputs[:, 0, :1] * 2)
dataloader = DataLoader(samples, batch_size=4)

def loss_fn(model, batch):
    mean, variance = model[4].running_mean.clone(), model[1].running_var.clone()
    return nn.functional.mse_loss(model(batch[0]), batch[1]) + 0.1 * mean.mean() + 0.1 * variance.mean()
""",
    flags={"steps": 8, "sync_batchnorm": True},
    plans=("1 rank", "ddp", "zero1", "torch ddp", "hybrid dp"),
)
