"""LBFGS, which asks a closure for loss and gradient many times in a step; its line search looks at the loss."""

from tests.training.cells.harness.steps import step_case

CASE = step_case(
    """
import torch
from torch import nn
from torch.utils.data import TensorDataset

model = nn.Linear(4, 2)
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=6, line_search_fn="strong_wolfe")
inputs = torch.randn(24, 4)
dataset = TensorDataset(inputs, inputs[:, :2] * 2 + 0.1 * torch.randn(24, 2))

def train_step(model, optimizer, batch):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        return loss
    return optimizer.step(closure)
"""
)
