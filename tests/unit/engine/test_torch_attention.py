"""An error of torch's attention on CPUs that docs/upstream.md names: it tells when upstream is mended."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def _gradient(*, is_fused: bool) -> torch.Tensor:
    """Of the values, where the first of three queries may see no key, as in texts padded on the left."""
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(1, 1, 3, 8, requires_grad=True) for _ in range(3))
    mask = torch.zeros(3, 3).masked_fill(~torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 1]]).bool(), -3.4e38)
    with nullcontext() if is_fused else sdpa_kernel(SDPBackend.MATH):
        out = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out[:, :, 0].sum().backward()
    assert values.grad is not None
    return values.grad[0, 0, :, 0]


def test_the_fused_kernel_takes_each_weight_of_a_query_without_keys_for_one() -> None:
    """The three weights are 1/3 each, so each value's gradient is."""
    assert _gradient(is_fused=False).tolist() == pytest.approx([1 / 3] * 3)
    assert _gradient(is_fused=True).tolist() == pytest.approx([1.0] * 3), "upstream is mended: leave the page's row out"
