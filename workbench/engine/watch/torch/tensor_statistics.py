"""Figures of many tensors at once, on their device: multi-tensor operations, nothing waits for anything.

On a CPU a figure may decide what is computed next, which costs nothing there; on a GPU that would be a synchronisation,
so there every path is the same whatever the values are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

#: a magnitude in [2**(i - BIAS), 2**(i + 1 - BIAS)) is counted in bucket i; bucket 0 holds zeros and everything below
#: 2**-126, bucket 255 what is not finite. These are the exponent bits of an IEEE single.
BUCKETS = 256
BIAS = 127
_MANTISSA_BITS = 23
#: below this norm single precision may have lost squares of elements
_TINY = 1e-15
#: elements whose squares are added in single precision
_ROW = 4096
#: elements up to which torch's own norm is right to 1e-6 (sums of numbers of few bits are rounded one way more often);
#: and it takes many tensors at once
_SMALL, _SMALL_HALF = 2**16, 2**12

#: columns of ``full_set``
SUM, NORM, MAX_ABS, ZEROS = range(4)


def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norms, float64 ``(len(tensors),)``; not finite where an element is not.

    On a CPU in single precision (double is twenty times as slow there), of large tensors by rows whose squares are
    added in double, as torch's own norm of millions of elements is wrong in the fourth digit; again in double where
    squares over- or underflow.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    if tensors[0].device.type != "cpu" or tensors[0].dtype == torch.float64:
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float64))
    found = torch.empty(len(tensors), dtype=torch.float64)
    most = _most_at_once(tensors)
    small = [place for place, tensor in enumerate(tensors) if tensor.numel() <= most]
    if small:
        norms_ = torch._foreach_norm([tensors[place] for place in small], 2, dtype=torch.float32)
        found[small] = torch.stack(norms_).double()
    for place in set(range(len(tensors))).difference(small):
        found[place] = _squares_by_rows(tensors[place].reshape(-1)).sqrt()
    for index in torch.nonzero(~((found > _TINY) & torch.isfinite(found))).flatten().tolist():
        if found[index] != 0 or torch.count_nonzero(tensors[index].reshape(-1)):
            found[index] = torch.linalg.vector_norm(tensors[index], dtype=torch.float64)
    return found


def sum_of_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Over all elements of ``tensors``, a float64 scalar; not finite where an element is not.

    As right as ``norms``; cheaper on a CPU where there are many tensors, as it does not tell them apart.
    """
    if not tensors or tensors[0].device.type != "cpu" or tensors[0].dtype == torch.float64:
        return norms(tensors).square().sum()
    most = _most_at_once(tensors)
    small = [tensor for tensor in tensors if tensor.numel() <= most]
    squares = [_squares_by_rows(tensor.reshape(-1)) for tensor in tensors if tensor.numel() > most]
    if small:
        squares.append(torch.stack(torch._foreach_norm(small, 2, dtype=torch.float32)).double().square().sum())
    found = torch.stack(squares).sum()
    return found if _TINY**2 < found < math.inf else norms(tensors).square().sum()


def _most_at_once(tensors: Sequence[torch.Tensor]) -> int:
    return _SMALL if all(tensor.dtype == torch.float32 for tensor in tensors) else _SMALL_HALF


def _squares_by_rows(flat: torch.Tensor) -> torch.Tensor:
    end = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:end].view(-1, _ROW), dim=1, dtype=torch.float32).double()
    rest = torch.linalg.vector_norm(flat[end:], dtype=torch.float32).double()
    return rows.square().sum() + rest.square()


def full_set(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Per tensor: float64 ``(n, 4)`` of sum, L2 norm, largest magnitude (these over finite elements) and zeros; and
    int64 ``(n, BUCKETS)``, how many magnitudes lie in each power of two."""
    if not tensors:
        return torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, BUCKETS, dtype=torch.int64)
    singles = [_single(tensor) for tensor in tensors]
    counts = torch.stack([_magnitudes(flat) for flat in singles])
    if singles[0].device.type == "cpu":
        clean = [_finite(flat) if bad else flat for flat, bad in zip(singles, counts[:, -1].tolist(), strict=True)]
        zeros = [_zeros(flat) if low else low for flat, low in zip(singles, counts[:, 0], strict=True)]
    else:
        clean = [_finite(flat) for flat in singles]
        zeros = [_zeros(flat) for flat in singles]
    ranges = [torch.aminmax(flat) for flat in clean]
    largest = torch.stack([torch.maximum(-low, high) for low, high in ranges])
    kind = torch.float64 if clean[0].device.type != "cpu" else None
    sums = torch.stack([flat.sum(dtype=kind).double() for flat in clean])
    return torch.stack([sums, norms(clean), largest.double(), torch.stack(zeros).double()], dim=1), counts


def dots(pairs: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> torch.Tensor:
    """Inner products, float64 ``(len(pairs),)``, each summed over its pairs. Single precision holds products of half
    precision numbers that half precision does not."""
    found = []
    for several in pairs:
        terms = [torch.dot(a.reshape(-1).float(), b.reshape(-1).float()).double() for a, b in several]
        found.append(terms[0] if len(terms) == 1 else torch.stack(terms).sum())
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def _single(tensor: torch.Tensor) -> torch.Tensor:
    """Flat; half precision as single, which is exact. Double stays."""
    flat = tensor.reshape(-1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def _finite(flat: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)


def _zeros(flat: torch.Tensor) -> torch.Tensor:
    return flat.numel() - torch.count_nonzero(flat)


def _magnitudes(flat: torch.Tensor) -> torch.Tensor:
    single = flat.float()  # double beyond the range of single counts as not finite, or as zero
    exponents = single.view(torch.int32) >> _MANTISSA_BITS
    if flat.device.type == "cpu":
        # an unsigned byte drops the sign bit, and is what bincount is fastest with
        return torch.bincount(exponents.to(torch.uint8), minlength=BUCKETS)
    with _integers_may_race():  # bincount would wait for the device to size its result
        return torch.histc(exponents & (BUCKETS - 1), BUCKETS, 0, BUCKETS).long()


@contextmanager
def _integers_may_race() -> Iterator[None]:
    """torch refuses histc in its deterministic mode; counts of integers come out the same in any order."""
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
