"""Sharpness-aware minimisation, whose ascent needs the gradient of the whole batch, in both of its usual forms."""

from tests.training.cells.harness.steps import step_case

SAM = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **defaults):
        super().__init__(params, dict(rho=rho, **defaults))
        self.base_optimizer = base(self.param_groups, **defaults)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.detach().clone()
                p.add_(p.grad * group["rho"] / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure):
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()

model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.2, momentum=0.9)
dataloader = DataLoader(TensorDataset(torch.randn(19, 4), torch.randint(0, 3, (19,))), batch_size=8)
loss_of_batch = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
"""

CASE = step_case(
    SAM
    + """
def train_step(model, optimizer, batch):
    loss = loss_of_batch(model, batch)
    loss.backward()
    if turn[0] % 2:
        optimizer.first_step()
        loss_of_batch(model, batch).backward()
        optimizer.second_step()
    else:
        def closure():
            again = loss_of_batch(model, batch)
            again.backward()
            return again
        optimizer.step(closure)
    turn[0] += 1
    return loss

turn = [0]
"""
)
