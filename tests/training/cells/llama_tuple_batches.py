"""A Llama whose batches are (ids, mask, target) tuples: the model never sees the target, under no plan."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 32
mask = torch.ones(16, 8, dtype=torch.long)
target = (ids * 3 + 1) % 32
target[::3, 2:] = -100
dataset = torch.utils.data.TensorDataset(ids, mask, target)

def criterion(outputs, batch):
    return nn.functional.cross_entropy(outputs.logits.flatten(0, 1).float(), batch[-1].flatten())
""",
    plans=("1 rank", "ddp", "zero1", "tp", "pp"),
    tolerance=1e-3,
)
