"""An optimizer that normalises an update by the norm of its weight, all of which is on one stage."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

class Lamb(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02):
        super().__init__(params, {"lr": lr})
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.norm() / (p.grad.norm() + 1e-6) * p.grad

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
))
optimizer = Lamb(model.parameters())
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 32
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("ddp", "tp", "pp"),
    refused={"tp": "reads whole weights"},
)
