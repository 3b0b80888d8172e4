"""A class of one's own made from one that tensor and pipeline parallelism split."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

class Quieter(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.loss = outputs.loss / 2
        return outputs

model = Quieter(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 31
dataset = [{"input_ids": row, "labels": row % 2} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("ddp", "tp", "pp"),
    refused=dict.fromkeys(("tp", "pp"), "cannot split a Quieter: it splits models of the transformers library"),
    tolerance=1e-3,
)
