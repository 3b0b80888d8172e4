"""Validation of a model that is split: loss and metrics see whole outputs, also where batches are uneven."""

from tests.training.cells.harness.case import Case

CASE = Case(
    flags={"eval_every": 2},
    plans=("1 rank", "zero1", "hybrid dp", "tp", "pp"),
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(3)
config = LlamaConfig(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2, vocab_size=32)
model = LlamaForCausalLM(config)
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)

def texts(lengths, factor):
    found = []
    for index, length in enumerate(lengths):
        ids = (torch.arange(8) * (index + factor)) % 32
        labels = ids.clone()
        labels[length:] = -100
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found

dataset = texts([8, 3, 8, 5, 6, 8, 2, 8], 3)
eval_dataset = texts([8, 2, 5, 8, 3, 7], 7)
criterion = lambda outputs, batch: outputs.loss
metrics = {"next_token": lambda outputs, batch: (
    (outputs.logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]).sum(), (batch["labels"][:, 1:] != -100).sum()
)}
""",
    plain="""
def validate():
    ids, labels = (torch.stack([sample[key] for sample in eval_dataset]) for key in ("input_ids", "labels"))
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].double()
    wanted = labels[:, 1:]
    counted = wanted != -100
    return {
        "loss": float(torch.nn.functional.cross_entropy(logits[counted], wanted[counted])),
        "next_token": float((logits.argmax(-1) == wanted)[counted].double().mean()),
    }

losses, norms = train(globals(), validate)
""",
)
