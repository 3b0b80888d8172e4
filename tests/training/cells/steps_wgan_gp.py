"""A WGAN with gradient penalty: torch.autograd.grad with create_graph, inside of the loss of a backward pass."""

from tests.training.cells.harness.steps import step_case

CASE = step_case(
    """
import torch
from torch import nn
from torch.utils.data import TensorDataset

model = nn.ModuleDict({
    "g": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
    "d": nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1)),
})
optimizers = [torch.optim.Adam(model[name].parameters(), lr=0.01) for name in ("g", "d")]
dataset = TensorDataset(torch.randn(24, 2) + 1, torch.randn(24, 3), torch.rand(24, 1))

def train_step(model, optimizers, batch):
    opt_g, opt_d = optimizers
    real, noise, mix = batch
    for p in model["d"].parameters():
        p.requires_grad_(True)
    fake = model["g"](noise).detach()
    between = (mix * real + (1 - mix) * fake).requires_grad_(True)
    (slope,) = torch.autograd.grad(model["d"](between).sum(), between, create_graph=True)
    penalty = (slope.norm(dim=1) - 1).square().mean()
    loss_d = model["d"](fake).mean() - model["d"](real).mean() + 10 * penalty
    opt_d.zero_grad()
    loss_d.backward(retain_graph=True)
    opt_d.step()
    for p in model["d"].parameters():
        p.requires_grad_(False)
    loss_g = -model["d"](model["g"](noise)).mean()
    opt_g.zero_grad()
    loss_g.backward()
    opt_g.step()
    return loss_d.detach() + loss_g.detach()
""",
    plain="""
for batch, _ in zip(batches(globals()), range(spec.steps)):
    losses.append(float(train_step(model, optimizers, batch)))
""",
)
