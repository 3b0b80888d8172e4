"""LBFGS whose closure sets the gradients itself, without a backward pass."""

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
        weights = list(model.parameters())
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
            weight.grad = gradient
        return loss
    return optimizer.step(closure)
""",
    says={plan: "averaged over ranks when the optimizer steps" for plan in ("ddp", "torch ddp")},
)
