"""A Llama that classifies texts padded on the left, with the pad token inside too: the last real token counts."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

model = LlamaForSequenceClassification(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False, pad_token_id=31, initializer_range=0.3,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 31
dataset = []
for row, text in enumerate(ids):
    mask = torch.arange(8) >= row % 4
    text = text.masked_fill(~mask, 31)
    text[5] = 31 if row % 3 else text[5]
    dataset.append({"input_ids": text, "attention_mask": mask.long(), "labels": row % 3})
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("1 rank", "ddp", "accumulate 2", "tp", "pp"),
)
