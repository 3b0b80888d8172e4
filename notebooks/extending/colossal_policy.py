# %%dist, after %dist_up -n 2 --framework colossal
# A policy of one's own: Colossal-AI's ShardFormer cuts a module that it does not know over tensor-parallel ranks.

import torch
import torch.distributed as dist
from colossalai.accelerator import set_accelerator
from colossalai.shardformer import ShardConfig, ShardFormer
from colossalai.shardformer.layer import Linear1D_Col, Linear1D_Row
from colossalai.shardformer.policies.base_policy import ModulePolicyDescription, Policy
from colossalai.shardformer.policies.base_policy import SubModuleReplacementDescription as Replacement
from torch import nn

from workbench.engine.frameworks.colossal.startup.gloo_accelerator import GlooAccelerator

set_accelerator(GlooAccelerator())  # as in a run: split layers ask for what Colossal-AI's own for processors lacks
WIDTH, HIDDEN = 16, 64


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return x + self.down(torch.sigmoid(self.gate(x)) * self.up(x))


class GatedPolicy(Policy):
    """Each rank has some hidden features: both layers before are cut along outputs, the one behind along inputs."""

    def config_sanity_check(self):
        ranks = self.shard_config.tensor_parallel_size
        if HIDDEN % ranks:
            raise ValueError(f"{HIDDEN} hidden features over {ranks} ranks: choose a divisor")

    def preprocess(self):
        return self.model

    def postprocess(self):
        return self.model

    def module_policy(self):
        cuts = {"gate": Linear1D_Col, "up": Linear1D_Col, "down": Linear1D_Row}
        layers = [Replacement(suffix=name, target_module=kind) for name, kind in cuts.items()]
        return {Gated: ModulePolicyDescription(sub_module_replacement=layers)}


torch.manual_seed(0)
inputs = torch.randn(32, WIDTH)
config = ShardConfig(tensor_parallel_process_group=dist.group.WORLD)
model, _ = ShardFormer(config).optimize(nn.Sequential(Gated(), Gated()), GatedPolicy())
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
losses = []
for _ in range(10):
    loss = (model(inputs) - inputs.roll(1, 1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
