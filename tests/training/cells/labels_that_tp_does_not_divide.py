"""A classifier of five labels over two tensor-parallel ranks: each of them holds the whole last layer."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

model = LlamaForSequenceClassification(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=64, num_labels=5, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False, pad_token_id=31,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 31
dataset = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("ddp", "zero1", "tp"),
    tolerance=1e-3,
)
