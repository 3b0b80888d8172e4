"""Sums of squares of many tensors, against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.engine.watch.torch import tensor_statistics as statistics

SHAPES = [(7,), (128, 128), (1,), (1024, 700), (352, 128), (0,), (3, 5, 7), (4096, 3)]


def tensors(dtype: torch.dtype, scale: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype) for shape in SHAPES]


def truth(parts: list[torch.Tensor]) -> float:
    return float(sum((part.double().numpy() ** 2).sum() for part in parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_sum_of_squares_is_that_of_double_precision(dtype, scale):
    parts = tensors(dtype, scale)
    found = statistics.norms(parts).square().sum()
    assert found.dtype == torch.float64
    np.testing.assert_allclose(float(found), truth(parts), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_beyond_single_precision_are_counted(scale):
    parts = tensors(torch.float32, scale)
    np.testing.assert_allclose(float(statistics.norms(parts).square().sum()), truth(parts), rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_element_that_is_not_finite_makes_the_sum_so(bad):
    for place in (0, 3, 7):
        parts = tensors(torch.float32, 1.0)
        parts[place].view(-1)[-1] = bad
        assert not np.isfinite(float(statistics.norms(parts).square().sum()))


def test_no_tensors_and_zeros_have_the_sum_zero():
    assert float(statistics.norms([]).square().sum()) == 0
    assert float(statistics.norms([torch.zeros(5000), torch.zeros(3)]).square().sum()) == 0
