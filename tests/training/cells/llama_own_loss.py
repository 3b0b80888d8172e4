"""A Llama's own loss with ignored labels, which differ in number between samples."""

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
labels = ids.clone()
for row in range(16):
    labels[row, row % 5 + 2:] = -100
dataset = [{"input_ids": i, "labels": l} for i, l in zip(ids, labels)]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("1 rank", "ddp", "zero2", "accumulate 2", "torch ddp", "tp", "pp"),
    tolerance=1e-3,
)
