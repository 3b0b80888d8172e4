"""An optimizer that clips the gradients of a split model in its own step: each rank has those of its part."""

from tests.training.cells.harness.case import LOSSES_ONLY, Case

#: a step that reads gradients: ``reads`` is its statement
CELL = """
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

class Stepping(torch.optim.SGD):
    def step(self, closure=None):
        {reads}
        return super().step(closure)

model = GPT2LMHeadModel(GPT2Config(
    vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    use_cache=False, tie_word_embeddings=False,
))
optimizer = Stepping(model.parameters(), lr=0.1)
ids = torch.arange(32 * 8).reshape(32, 8) * 7 % 32
dataset = [{{"input_ids": row, "labels": row}} for row in ids]
criterion = lambda outputs, batch: outputs.loss
"""
CASE = Case(
    cell=CELL.format(reads="nn.utils.clip_grad_norm_(model.parameters(), 0.1)"),
    plans=("ddp", "tp", "pp"),
    plain=LOSSES_ONLY,
    refused={"tp": "clips gradients by their norm", "pp": "clips gradients by their norm"},
)
