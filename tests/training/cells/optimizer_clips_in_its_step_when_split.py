"""An optimizer that clips the gradients of a split model in its own step: each rank has those of its part."""

from tests.training.cells.harness.case import Case

CASE = Case(
    cell="""
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

class Stepping(torch.optim.SGD):
    def step(self, closure=None):
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return super().step(closure)

model = GPT2LMHeadModel(GPT2Config(
    vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    use_cache=False, tie_word_embeddings=False,
))
optimizer = Stepping(model.parameters(), lr=0.1)
ids = torch.arange(32 * 8).reshape(32, 8) * 7 % 32
dataset = [{"input_ids": row, "labels": row} for row in ids]
criterion = lambda outputs, batch: outputs.loss
""",
    plans=("ddp", "tp", "pp"),
    plain="""
for batch, _ in zip(batches(globals()), range(spec.steps)):
    loss = loss_of(globals(), batch)
    optimizer.zero_grad()
    loss.backward()
    losses.append(loss.item())
    optimizer.step()
""",
    refused={"tp": "clips gradients by their norm", "pp": "clips gradients by their norm"},
)
