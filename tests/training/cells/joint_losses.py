"""The loss of a router looks at all tokens at once: pieces of a batch compute another one, and it is told."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import MixtralConfig, MixtralForCausalLM

model = MixtralForCausalLM(MixtralConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False, num_local_experts=4,
    output_router_logits=True, router_aux_loss_coef=0.5,
))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
ids = torch.arange(32 * 8).reshape(32, 8) * 7 % 32
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("1 rank", "ddp", "torch ddp"),
    differs=("ddp", "torch ddp"),
    says=dict.fromkeys(
        ("ddp", "torch ddp"), "the loss of MixtralForCausalLM holds how evenly a router spreads all tokens"
    ),
)
