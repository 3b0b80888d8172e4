"""A loss over the hidden states of a Llama, of which Colossal-AI's own forward pass gives none."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 32
dataset = [{"input_ids": row, "labels": row} for row in ids]

def loss_fn(model, batch):
    outputs = model(**batch, output_hidden_states=True)
    return outputs.logits.pow(2).mean() + sum(hidden.pow(2).mean() for hidden in outputs.hidden_states)
""",
    plans=("ddp", "tp"),
    tolerance=1e-3,
)
