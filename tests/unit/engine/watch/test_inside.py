"""Attention and routers by their formulas in NumPy; hooks that see each output once and go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from workbench.core.records import columns_of
from workbench.core.watches import parse_watch
from workbench.engine.base.parts import WeightMatrix
from workbench.engine.watch.inside.attention import QUERIES, product_logits, softmax_logits, summed
from workbench.engine.watch.inside.routers import routed, routers_of
from workbench.engine.watch.inside.spectra import PowerIteration
from workbench.engine.watch.inside.taps import Taps
from workbench.errors import ConfigError
from workbench.telemetry.inside.spectra import combine_spectra


def _entropy(logits: np.ndarray) -> np.ndarray:
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    return -np.sum(chances * np.log(np.where(chances > 0, chances, 1)), axis=-1)


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added"])
def test_the_logits_are_those_of_the_product_with_its_mask(mask: str) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 40, 8), torch.randn(2, 2, 40, 8)
    hidden = torch.arange(40) < 5
    added = torch.zeros(1, 1, 1, 40).masked_fill(hidden, torch.finfo(torch.float32).min)
    given: Any = {
        "none": {}, "causal": {"is_causal": True}, "bool": {"attn_mask": ~hidden.expand(1, 1, 1, 40)},
        "added": {"attn_mask": added},
    }[mask]  # fmt: skip
    queries, found = summed(product_logits(query, key, key, enable_gqa=True, **given))
    logits = np.einsum("bhqd,bhkd->bhqk", query.numpy(), np.repeat(key.numpy(), 2, axis=1)) / math.sqrt(8)
    visible = np.ones((40, 40), dtype=bool)
    if mask == "causal":
        visible = np.tril(visible)
    elif mask != "none":
        visible[:, :5] = False
    places = np.arange(1, QUERIES + 1) * 40 // QUERIES - 1
    logits = np.where(visible, logits, -np.inf)[:, :, places]
    entropy, uniform, largest = found.tolist()
    assert queries == 2 * 4 * QUERIES and entropy == pytest.approx(_entropy(logits.astype(float)).sum(), rel=1e-5)
    assert uniform == pytest.approx(8 * np.log(visible.sum(1)[places]).sum())
    assert largest == pytest.approx(logits.max(), rel=1e-5)


def test_a_softmax_that_is_no_attention_is_left_alone() -> None:
    assert softmax_logits(torch.zeros(4, 5), -1) is None and softmax_logits(torch.zeros(2, 4, 5), 1) is None
    assert softmax_logits(torch.zeros(2, 4, 5), 2) is not None


def test_a_router_by_its_formula() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [2.0, 4.0, 0.0], [1.0, 3.0, 2.0]])
    tokens, found = routed(logits, 2)
    assert tokens == 3 and found[1:].tolist() == [2, 3, 1]
    assert float(found[0]) == pytest.approx(_entropy(logits.double().numpy()).sum())


def test_routers_are_found_by_name_and_number_of_experts() -> None:
    block, plain = torch.nn.Module(), torch.nn.Module()
    block.gate, block.top_k = torch.nn.Linear(4, 8), 2
    plain.gate = torch.nn.Linear(4, 8)  # of a gated perceptron
    assert routers_of(torch.nn.ModuleDict({"block": block, "plain": plain})) == {"block.gate": 2}


def test_singular_values_ride_along() -> None:
    """Of a linear layer, a convolution, and weights of zeros and of NaN; after few iterations each time."""
    random = np.random.default_rng(0)
    weights = {
        "linear": random.normal(size=(9, 6)), "conv": random.normal(size=(4, 3 * 2 * 2)), "zeros": np.zeros((3, 2)),
        "nan": np.full((2, 2), np.nan),
    }  # fmt: skip
    iteration = PowerIteration(lambda values: None)
    for look in range(40):
        weights["linear"] += 1e-3 * random.normal(size=(9, 6))
        matrices = [WeightMatrix(name, torch.tensor(value, dtype=torch.float32), "") for name, value in weights.items()]
        pending = iteration.look(matrices, look, 0)
        assert pending is not None and pending.ready()
    found = {row.layer: row for row in pending.records()}
    for name in ("linear", "conv"):
        sigma = np.linalg.svd(weights[name], compute_uv=False)
        assert sigma[0] * (1 - 1e-5) <= found[name].sigma_max <= sigma[0] * (1 + 1e-6)
        assert found[name].weight_sq == pytest.approx(np.sum(sigma**2), rel=1e-6)
    assert found["zeros"].sigma_max == 0 and math.isnan(found["nan"].sigma_max)
    rows = {name: np.array([getattr(row, name) for row in found.values()]) for name in columns_of("spectra")}
    table = combine_spectra(rows).set_index("layer")
    assert math.isnan(table.loc["zeros", "stable_rank"]) and table.loc["zeros", "norm"] == 0
    matrices[-1] = WeightMatrix("nan", torch.diag(torch.tensor([3.0, 1.0])), "")
    again = {row.layer: row for row in iteration.look(matrices, 41, 0).records()}  # type: ignore[union-attr]
    assert again["nan"].sigma_max == pytest.approx(3, rel=0.2), "a weight that was NaN is looked at again"
    assert iteration.look([], 1, 0) is None


class _Net(torch.nn.Module):
    """Layers of which one is computed again in the backward pass, and one fails once and is called again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (torch.nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(RuntimeError):
            self.first(torch.ones(2, 7))
        hidden = checkpoint(self.second, self.first(x), use_reentrant=False)
        return self.last(hidden)


def test_each_output_is_seen_once_and_no_hook_is_left() -> None:
    net, seen = _Net(), []
    with Taps(net, {"", "first", "second", "last"}, lambda *found: seen.append(found[:2]), None) as taps:
        net(torch.ones(2, 3)).sum().backward()
        net.eval()
        with torch.no_grad():
            net.last(torch.ones(2, 3))
        assert not taps.calls
    outputs = [("first", "output"), ("second", "output"), ("last", "output")]
    assert seen == [*outputs, *(((name, "gradient")) for name, _ in reversed(outputs))], "the root hands on the last"
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in net.modules()]
    assert not any(hooks)


def test_what_is_split_follows_from_the_layers_of_the_plan() -> None:
    kinds = {"cols": "tp", "rows": ""}
    net = torch.nn.Sequential()
    for name, module in (("cols", torch.nn.Linear(2, 2)), ("act", torch.nn.ReLU()), ("rows", torch.nn.Linear(2, 2)),
                         ("norm", torch.nn.LayerNorm(2))):  # fmt: skip
        net.add_module(name, module)
    whole = torch.nn.Sequential(net, torch.nn.Tanh())
    names = {module: kinds.get(name.rpartition(".")[2]) for name, module in whole.named_modules()}
    seen: dict[str, str] = {}

    def shown(layer: str, what: str, micro_batch: int, sharded: str, tensor: torch.Tensor) -> None:
        seen[layer] = sharded

    with Taps(whole, {name for name, _ in whole.named_modules()}, shown, names.get):
        whole(torch.ones(1, 2, requires_grad=True))
    assert seen == {"0.cols": "tp", "0.act": "tp", "0.rows": "", "0.norm": "", "1": ""}


@pytest.mark.parametrize("value", ["weight", "activation", "micro_batches", 3])
def test_what_cannot_be_watched_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="--watch"):
        parse_watch(value)
    assert parse_watch("attention, activations") == "activations,attention"
