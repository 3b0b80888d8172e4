"""Positions in the batch of an OPT, which its pipeline stages would not take."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import OPTConfig, OPTForCausalLM

model = OPTForCausalLM(OPTConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, use_cache=False,
    word_embed_proj_dim=16, max_position_embeddings=16, dropout=0.0, init_std=0.3,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 31
dataset = [{"input_ids": row, "position_ids": torch.arange(8) + 3, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("ddp", "tp", "pp"),
    refused={"pp": "does not pass position_ids of the batch on in a OPTForCausalLM"},
)
