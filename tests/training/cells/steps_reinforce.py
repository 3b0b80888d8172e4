"""REINFORCE on a bandit with contexts: actions are drawn without gradients, and the loss weighs their log-probability.

Uniform numbers that decide the actions are part of the data, so that one process draws the same actions.
"""

from tests.training.cells.harness.steps import step_case

CASE = step_case(
    """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

policy, critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Linear(3, 1)
model = nn.ModuleDict({"policy": policy, "critic": critic})
optimizer = (torch.optim.SGD(policy.parameters(), lr=0.5), torch.optim.SGD(critic.parameters(), lr=0.1))
contexts = torch.randn(22, 3)
dataloader = DataLoader(TensorDataset(contexts, torch.rand(22, 1)), batch_size=8)

def train_step(model, optimizer, batch):
    context, draws = batch
    with torch.no_grad():
        chances = model["policy"](context).softmax(-1)
        actions = (chances.cumsum(-1) < draws).sum(-1).clamp(max=3)
        rewards = (actions == context.argmax(-1)).float()
    value = model["critic"](context).squeeze(-1)
    log_p = model["policy"](context).log_softmax(-1).gather(1, actions[:, None]).squeeze(1)
    for each in optimizer:
        each.zero_grad()
    loss = -(log_p * (rewards - value.detach())).mean() + (value - rewards).square().mean()
    loss.backward()
    for each in optimizer:
        each.step()
    return loss
"""
)
