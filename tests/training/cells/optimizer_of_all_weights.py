"""An optimizer whose update of each weight is scaled by the norm of all of them."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

class GlobalTrust(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        ratio = sum(p.square().sum() for p in held).sqrt() / sum(p.grad.square().sum() for p in held).sqrt()
        for group in self.param_groups:
            for p in held:
                p -= group["lr"] * ratio * p.grad

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
))
optimizer = GlobalTrust(model.parameters())
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 32
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("ddp", "zero1", "tp", "pp"),
    refused={
        "zero1": "reads whole weights",
        "tp": "reads whole weights",
        "pp": "reads several weights at once",
    },
)
