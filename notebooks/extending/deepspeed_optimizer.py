# %%dist_train -n 2 --framework deepspeed --plugin zero1 --steps 20 --batch-size 8
# An optimizer of one's own in DeepSpeed's engine: ZeRO gives it the part of the weights that is this rank's.

import torch
from torch import nn


class Lion(torch.optim.Optimizer):
    """Steps by the sign of an interpolated momentum: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms".

    All that it does is done element by element, so it may be given flat parts of weights, as ZeRO does.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(momentum.lerp(parameter.grad, 1 - fast).sign(), alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1 - slow)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
optimizer = Lion(model.parameters(), lr=0.01, weight_decay=0.1)
inputs = torch.randn(64, 8)
dataset = torch.utils.data.TensorDataset(inputs, inputs[:, :4] * 2)
criterion = nn.MSELoss()
