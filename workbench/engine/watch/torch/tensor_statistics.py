"""Computes statistics of many tensors at once, on their device, with multi-tensor operations and without blocking.

On a CPU, computed values may decide what is computed next. On a GPU that would synchronise the device, so there the
same operations run whatever the values are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

#: bucket i counts magnitudes in [2**(i - BIAS), 2**(i + 1 - BIAS)); bucket 0 counts zeros and everything below 2**-126,
#: bucket 255 non-finite values. The bucket is the exponent field of an IEEE single-precision number.
BUCKETS = 256
BIAS = 127
_MANTISSA_BITS = 23
#: below this norm the squares of elements may underflow in single precision
_TINY = 1e-15
#: number of elements whose squares are summed in single precision
_ROW = 4096
#: number of elements up to which torch's multi-tensor norm has a relative error below 1e-6: for fp32 tensors, and for
#: half-precision ones, whose rounding errors are biased
_SMALL, _SMALL_HALF = 2**16, 2**12

#: columns of ``full_set``
SUM, NORM, MAX_ABS, ZEROS = range(4)


def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norms of the tensors, float64 [len(tensors)]; non-finite where an element is non-finite.

    On a CPU they are computed in single precision, as double is twenty times as slow. Large tensors are summed by rows
    whose squares are added in double precision, as torch's single-precision norm of millions of elements is wrong in
    the fourth digit. Where squares overflow or underflow, the norm is computed again in double precision.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    if tensors[0].device.type != "cpu" or tensors[0].dtype == torch.float64:
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float64))
    found = torch.empty(len(tensors), dtype=torch.float64)
    limit = _small_limit(tensors)
    small = [index for index, tensor in enumerate(tensors) if tensor.numel() <= limit]
    if small:
        norms_ = torch._foreach_norm([tensors[index] for index in small], 2, dtype=torch.float32)
        found[small] = torch.stack(norms_).double()
    for index in set(range(len(tensors))).difference(small):
        found[index] = _sum_squares_by_rows(tensors[index].reshape(-1)).sqrt()
    for index in torch.nonzero(~((found > _TINY) & torch.isfinite(found))).flatten().tolist():
        if found[index] != 0 or torch.count_nonzero(tensors[index].reshape(-1)):
            found[index] = torch.linalg.vector_norm(tensors[index], dtype=torch.float64)
    return found


def sum_of_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of squares over all elements of all ``tensors``, a float64 scalar; non-finite if an element is.

    As accurate as ``norms``, and cheaper for many tensors on a CPU.
    """
    if not tensors or tensors[0].device.type != "cpu" or tensors[0].dtype == torch.float64:
        return norms(tensors).square().sum()
    limit = _small_limit(tensors)
    small = [tensor for tensor in tensors if tensor.numel() <= limit]
    squares = [_sum_squares_by_rows(tensor.reshape(-1)) for tensor in tensors if tensor.numel() > limit]
    if small:
        squares.append(torch.stack(torch._foreach_norm(small, 2, dtype=torch.float32)).double().square().sum())
    found = torch.stack(squares).sum()
    return found if _TINY**2 < found < math.inf else norms(tensors).square().sum()


def _small_limit(tensors: Sequence[torch.Tensor]) -> int:
    return _SMALL if all(tensor.dtype == torch.float32 for tensor in tensors) else _SMALL_HALF


def _sum_squares_by_rows(flat: torch.Tensor) -> torch.Tensor:
    end = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:end].view(-1, _ROW), dim=1, dtype=torch.float32).double()
    rest = torch.linalg.vector_norm(flat[end:], dtype=torch.float32).double()
    return rows.square().sum() + rest.square()


def full_set(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of each tensor, and histograms of the magnitudes of its elements.

    Returns float64 [n, 4] (columns ``SUM``, ``NORM``, ``MAX_ABS`` over the finite elements, and the count ``ZEROS``)
    and int64 [n, BUCKETS] (elements per power of two).
    """
    if not tensors:
        return torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, BUCKETS, dtype=torch.int64)
    flats = [_flatten(tensor) for tensor in tensors]
    counts = torch.stack([_count_by_exponent(flat) for flat in flats])
    if flats[0].device.type == "cpu":
        clean = [_zero_nonfinite(f) if bad else f for f, bad in zip(flats, counts[:, -1].tolist(), strict=True)]
        zeros = [_count_zeros(flat) if low else low for flat, low in zip(flats, counts[:, 0], strict=True)]
    else:
        clean = [_zero_nonfinite(flat) for flat in flats]
        zeros = [_count_zeros(flat) for flat in flats]
    ranges = [torch.aminmax(flat) for flat in clean]
    largest = torch.stack([torch.maximum(-low, high) for low, high in ranges])
    dtype = torch.float64 if clean[0].device.type != "cpu" else None
    sums = torch.stack([flat.sum(dtype=dtype).double() for flat in clean])
    return torch.stack([sums, norms(clean), largest.double(), torch.stack(zeros).double()], dim=1), counts


def dots(pairs: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> torch.Tensor:
    """Inner products, float64 [len(pairs)], each summed over its pairs.

    The products are computed in single precision, as products of half-precision numbers overflow in half precision.
    """
    found = []
    for several in pairs:
        terms = [torch.dot(a.reshape(-1).float(), b.reshape(-1).float()).double() for a, b in several]
        found.append(terms[0] if len(terms) == 1 else torch.stack(terms).sum())
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def _flatten(tensor: torch.Tensor) -> torch.Tensor:
    """Flatten a tensor; half precision becomes single precision, which is exact, and double stays."""
    flat = tensor.reshape(-1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def _zero_nonfinite(flat: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)


def _count_zeros(flat: torch.Tensor) -> torch.Tensor:
    return flat.numel() - torch.count_nonzero(flat)


def _count_by_exponent(flat: torch.Tensor) -> torch.Tensor:
    single = flat.float()  # a double outside the range of single precision counts as non-finite or as zero
    exponents = single.view(torch.int32) >> _MANTISSA_BITS
    if flat.device.type == "cpu":
        # uint8 drops the sign bit and is the fastest type for bincount
        return torch.bincount(exponents.to(torch.uint8), minlength=BUCKETS)
    with _allow_nondeterminism():  # bincount would wait for the device to know the size of its result
        return torch.histc(exponents & (BUCKETS - 1), BUCKETS, 0, BUCKETS).long()


@contextmanager
def _allow_nondeterminism() -> Iterator[None]:
    """Leave torch's deterministic mode, which refuses ``histc``. Integer counts are the same in any order."""
    strict = torch.are_deterministic_algorithms_enabled()
    if not strict:
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
