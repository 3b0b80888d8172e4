"""The local gradients of replicas whose pieces hold different numbers of labels: their mean is the reduced gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.rank_pool import RankPool
from tests.training.cells.harness.case import PLANS, Case
from tests.training.cells.harness.trained import RANKS, train_case
from tests.training.cells.token_losses import CASE

#: a causal language model, of which a pipeline counts the labels; the answers are of very different lengths
LLAMA = Case(
    cell="""
import torch
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
dataset = []
for index, length in enumerate([2, 10, 3, 4, 9, 1, 1, 8]):
    ids = (torch.arange(12) * (index + 3)) % 32
    labels = ids.clone()
    labels[length:] = 0
    dataset.append({"input_ids": ids, "labels": labels})
# it ignores other labels than those that a pipeline expects it to ignore
criterion = lambda outputs, batch: torch.nn.functional.cross_entropy(
    outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=0)
""",
)
#: per replica: norms of each layer's gradient of the share's part of the loss of the first batch, times the replicas
SHARES = """
import numpy as np
from torch.utils.data import default_collate

replicas = {replicas}
samples = [dataset[index] for index in range(spec.batch_size)]
def add(share, whole):
    if isinstance(share, dict):
        outputs, labels, ignored = model(input_ids=share["input_ids"]).logits[:, :-1], share["labels"][:, 1:], 0
        of_all = whole["labels"][:, 1:]
    else:
        outputs, (_, labels), ignored = model(share[0]), share, -100
        of_all = whole[1]
    total = torch.nn.functional.cross_entropy(
        outputs.flatten(0, 1).double(), labels.flatten(), ignore_index=ignored, reduction="sum")
    return total / (of_all != ignored).sum() * replicas
whole = default_collate(samples)
size = len(samples) // replicas
for replica in range(replicas):
    model.zero_grad()
    add(default_collate(samples[replica * size : (replica + 1) * size]), whole).backward()
    layers = {{}}
    for name, parameter in model.named_parameters():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + float(parameter.grad.double().square().sum())
    norms += [layers[layer] ** 0.5 for layer in sorted(layers)]
"""
PLANS_TRIED = [
    *[("tokens", "accumulate 2", {"plugin": plugin}) for plugin in ("ddp", "zero1", "zero2")],
    ("tokens", "accumulate 2", {"framework": "torch"}),
    ("llama", "pp", {"ranks": 4, "micro_batches": 2}),
]


@pytest.mark.parametrize("level", ["full", "light"])
@pytest.mark.parametrize(("kind", "plan", "options"), PLANS_TRIED, ids=str)
def test_they_count_by_their_labels(kind: str, plan: str, options: dict[str, Any], level: str, pool: RankPool) -> None:
    case = {"tokens": CASE, "llama": LLAMA}[kind]
    # at level "light" the norms of local gradients are taken in the first step too
    monitored = {"level": level, **({"grad_every": 1} if level == "full" else {})}
    run, failure = train_case(pool, case, plan, **options, **monitored, steps=1)
    assert not failure
    assert run is not None
    table = run.gradients()
    local = table[(table["scope"] == "local") & (table["step"] == 1)]
    replicas = sorted(local["rank"].unique())
    layers = sorted(local["layer"].unique())
    alone = pool.run(
        1, f"{RANKS}:plain", cell=case.cell, loop=SHARES.format(replicas=2), options=case.options("1 rank")
    )[0]["norms"]
    right = np.array(alone).reshape(2, -1)
    ranks_of_replica = {**PLANS[plan], **options}.get("pp", 1)
    assert len(replicas) == 2 * ranks_of_replica
    for replica in range(2):
        mine = local[local["rank"] // ranks_of_replica == replica].groupby("layer")["norm"].first()
        assert list(mine.index) == layers
        np.testing.assert_allclose(mine.to_numpy(), right[replica], rtol=1e-4, atol=1e-7)
    if level == "full":
        reduced = table[table["scope"] == "reduced"].groupby("layer")["norm"].first()
        ratio = local["norm"].to_numpy() / reduced.loc[local["layer"]].to_numpy()
        np.testing.assert_allclose(local["norm_ratio"], ratio, rtol=1e-4)
        mean = (local["norm_ratio"] * local["cosine"]).groupby(local["layer"]).mean()
        np.testing.assert_allclose(mean, 1.0, atol=1e-4)  # the mean of the local gradients is the reduced one
