"""A loss over the hidden states of a model of the transformers library that Colossal-AI would replace parts of."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import OPTConfig, OPTForCausalLM

model = OPTForCausalLM(OPTConfig(
    vocab_size=32, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
    max_position_embeddings=16, dropout=0.0, use_cache=False, output_hidden_states=True,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 32
dataset = [{"input_ids": row, "labels": row} for row in ids]

def loss_fn(model, batch):
    outputs = model(**batch)
    return outputs.logits.pow(2).mean() + sum(hidden.pow(2).mean() for hidden in outputs.hidden_states)
""",
    plans=("1 rank", "ddp", "zero2", "hybrid dp", "tp"),
    tolerance=1e-3,
)
