"""A head that tensor and pipeline parallelism do not know, of a family that they split."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForTokenClassification

model = LlamaForTokenClassification(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
    classifier_dropout=0.0,
))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
ids = torch.arange(16 * 8).reshape(16, 8) * 7 % 31
dataset = [{"input_ids": row, "labels": row % 2} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("ddp", "zero1", "hybrid dp", "tp", "pp"),
    refused=dict.fromkeys(
        ("tp", "pp"), "it splits of the Llama family LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification. Use"
    ),
)
