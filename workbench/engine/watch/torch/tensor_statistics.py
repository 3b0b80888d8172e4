"""Computes statistics of many tensors at once, on their device, with multi-tensor operations and without blocking.

On a CPU, computed values may decide what is computed next. On a GPU that would synchronise the device, so there the
same operations run whatever the values are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch

from workbench.engine.base.parts import GradientPart, PartNorms

#: bucket i counts magnitudes in [2**(i - BIAS), 2**(i + 1 - BIAS)); bucket 0 counts zeros and everything below 2**-126,
#: bucket 255 non-finite values. The bucket is the exponent field of an IEEE single-precision number.
BUCKETS = 256
BIAS = 127
_MANTISSA_BITS = 23
#: below this norm the squares of elements may underflow in single precision
_TINY = 1e-15
#: number of elements whose squares are summed in single precision: of fp32 tensors (relative error below 1e-6), and of
#: half-precision ones, whose rounding errors are biased
_PIECE, _PIECE_HALF = 2**16, 2**12
#: number of elements up to which torch's multi-tensor norm has a relative error below 1e-6: for fp32 tensors, and for
#: half-precision ones
_SMALL, _SMALL_HALF = 2**16, 2**12

#: about so many elements of a tensor are counted by a sampled histogram
SAMPLED = 2048

#: columns of ``full_set``
SUM, NORM, MAX_ABS, ZEROS = range(4)


def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norms of the tensors, float64 [len(tensors)]; non-finite where an element is non-finite.

    On a CPU they are computed in single precision, as double is twenty times as slow. Large tensors are summed piece
    by piece, as torch's single-precision norm of millions of elements is wrong in the fourth digit. Where squares
    overflow or underflow, the norm is computed again in double precision.
    """
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    if tensors[0].device.type != "cpu" or tensors[0].dtype == torch.float64:
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=torch.float64))
    limit = _small_limit(tensors)
    small = [index for index, tensor in enumerate(tensors) if tensor.numel() <= limit]
    large = [index for index, tensor in enumerate(tensors) if tensor.numel() > limit]
    found = np.empty(len(tensors))
    if small:
        norms_ = torch._foreach_norm([tensors[index] for index in small], 2, dtype=torch.float32)
        found[small] = torch.stack(norms_).numpy()
    if large:
        found[large] = np.sqrt(_squares([tensors[index].reshape(-1) for index in large]))
    for index in np.flatnonzero(~((found > _TINY) & (found < np.inf))).tolist():
        if found[index] != 0 or torch.count_nonzero(tensors[index].reshape(-1)):
            found[index] = float(torch.linalg.vector_norm(tensors[index], dtype=torch.float64))
    return torch.from_numpy(found)


def part_norms(parts: Sequence[GradientPart], device: torch.device) -> PartNorms:
    """The norms of ``parts``, which have one loss scale; on ``device`` where there are none."""
    found = norms([part.tensor for part in parts]) if parts else torch.zeros(0, dtype=torch.float64, device=device)
    keys = [(part.layer, part.sharded, part.tensor.numel()) for part in parts]
    return PartNorms(keys, found, parts[0].scale if parts else 1.0)


def _small_limit(tensors: Sequence[torch.Tensor]) -> int:
    return _SMALL if all(tensor.dtype == torch.float32 for tensor in tensors) else _SMALL_HALF


def _squares(flats: Sequence[torch.Tensor]) -> np.ndarray:
    """Sum of squares of each tensor, float64: single precision over ``_PIECE`` elements, double precision over those
    sums."""
    is_single = [flat.dtype == torch.float32 for flat in flats]
    pieces = [
        [piece.float() for piece in flat.split(_PIECE if single else _PIECE_HALF)]
        for flat, single in zip(flats, is_single, strict=True)
    ]
    found = torch.stack([torch.dot(piece, piece) for several in pieces for piece in several]).double().numpy()
    first = np.cumsum([0, *(len(several) for several in pieces[:-1])])
    return np.add.reduceat(found, first)


def full_set(tensors: Sequence[torch.Tensor], *, sampled: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of each tensor, and histograms of the magnitudes of its elements.

    Returns float64 [n, 4] (columns ``SUM``, ``NORM``, ``MAX_ABS`` over the finite elements, and the count ``ZEROS``)
    and int64 [n, BUCKETS] (elements per power of two). With ``sampled`` the histograms count
    the elements at ``sample_places`` only; all else is exact, the count of non-finite elements too.
    """
    if not tensors:
        return torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, BUCKETS, dtype=torch.int64)
    flats = [_flatten(tensor) for tensor in tensors]
    on_cpu = flats[0].device.type == "cpu"
    counts = _sample_by_exponent(flats) if sampled else torch.stack([_count_by_exponent(flat) for flat in flats])
    if on_cpu:
        clean, length = _clean_on_cpu(flats, counts)
        with np.errstate(over="ignore"):
            figures = [_figures_on_cpu(*pair) for pair in zip(flats, clean, strict=True)]
        sums, largest, zeros = torch.tensor(figures, dtype=torch.float64).unbind(dim=1)
        return torch.stack([sums, length, largest, zeros], dim=1), counts
    clean, length = _clean_on_gpu(flats, counts)
    nonzero = torch.stack([torch.count_nonzero(flat) for flat in flats])
    missing = torch.tensor([flat.numel() for flat in flats]).to(nonzero.device, non_blocking=True) - nonzero
    lowest, highest = (torch.stack(each) for each in zip(*(torch.aminmax(flat) for flat in clean), strict=True))
    largest = torch.maximum(-lowest, highest).double()
    sums = torch.stack([flat.sum(dtype=torch.float64) for flat in clean])
    return torch.stack([sums, length, largest, missing.double()], dim=1), counts


def _figures_on_cpu(flat: torch.Tensor, clean: torch.Tensor) -> tuple[float, float, int]:
    """Sum and largest magnitude of ``clean``, and the count of zeros in ``flat``. Of a small tensor by NumPy: a call of
    torch costs more than the work, and all three are computed while the tensor is in the cache."""
    if flat.numel() > _SMALL:
        lowest, highest = torch.aminmax(clean)
        return float(clean.sum()), max(-float(lowest), float(highest)), flat.numel() - int(torch.count_nonzero(flat))
    values, finite = flat.detach().numpy(), clean.detach().numpy()
    return float(finite.sum()), max(-float(finite.min()), float(finite.max())), int(np.count_nonzero(values == 0))


def _clean_on_cpu(flats: list[torch.Tensor], counts: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The tensors with zeros for their non-finite elements, which are counted in ``counts``, and their norms."""
    length = norms(flats)
    bad = torch.nonzero(~torch.isfinite(length)).flatten().tolist()  # a norm is finite where all elements are
    if not bad:
        return flats, length
    clean = list(flats)
    for row in bad:
        clean[row] = _zero_nonfinite(flats[row])
        counts[row, -1] = _count_nonfinite(flats[row])
    return clean, norms(clean)


def _clean_on_gpu(flats: list[torch.Tensor], counts: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """As ``_clean_on_cpu``, without a look at values."""
    counts[:, -1] = torch.stack([_count_nonfinite(flat) for flat in flats])
    clean = [_zero_nonfinite(flat) for flat in flats]
    return clean, norms(clean)


@lru_cache(maxsize=512)
def sample_places(numel: int, device: torch.device) -> torch.Tensor:
    """Places of the elements of a tensor that a sampled histogram counts, int64: all of them, or ``SAMPLED``.

    The tensor is cut into ``SAMPLED`` equal pieces, and each gives one element at a random place, the same in every
    process. (Equal distances would fall on few columns of a matrix whose width they divide.)
    """
    if numel <= SAMPLED:
        return torch.arange(numel, device=device)
    edges = torch.arange(SAMPLED + 1, dtype=torch.int64) * numel // SAMPLED
    within = torch.rand(SAMPLED, generator=torch.Generator().manual_seed(numel), dtype=torch.float64)
    return (edges[:-1] + (within * (edges[1:] - edges[:-1])).long()).to(device)


def _sample_by_exponent(flats: Sequence[torch.Tensor]) -> torch.Tensor:
    if flats[0].device.type != "cpu":
        samples = [flat.take(sample_places(flat.numel(), flat.device)).float() for flat in flats]
        return torch.stack([_count_by_exponent(sample) for sample in samples])
    with np.errstate(over="ignore"):  # a double outside the range of single precision
        taken = [_sample_on_cpu(flat) for flat in flats]
    sizes = [sample.size for sample in taken]
    bucket = (np.concatenate(taken).view(np.int32) >> _MANTISSA_BITS) & (BUCKETS - 1)
    bucket += np.repeat(np.arange(0, BUCKETS * len(flats), BUCKETS, dtype=np.int32), sizes)
    return torch.from_numpy(np.bincount(bucket, minlength=BUCKETS * len(flats)).reshape(-1, BUCKETS))


def _sample_on_cpu(flat: torch.Tensor) -> np.ndarray:
    values = flat.detach().numpy()
    sample = values if values.size <= SAMPLED else values.take(sample_places(values.size, flat.device).numpy())
    return sample.astype(np.float32, copy=False)


def _count_nonfinite(flat: torch.Tensor) -> torch.Tensor:
    return flat.numel() - torch.count_nonzero(torch.isfinite(flat))


def dots(pairs: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]) -> torch.Tensor:
    """Inner products, float64 [len(pairs)], each summed over its pairs.

    The products are computed in single precision, as products of half-precision numbers overflow in half precision.
    """
    found = []
    for several in pairs:
        terms = [torch.dot(a.reshape(-1).float(), b.reshape(-1).float()) for a, b in several]
        found.append(terms[0] if len(terms) == 1 else torch.stack(terms).double().sum().float())
    return torch.stack(found).double() if found else torch.zeros(0, dtype=torch.float64)


def _flatten(tensor: torch.Tensor) -> torch.Tensor:
    """Flatten a tensor; half precision becomes single precision, which is exact, and double stays."""
    flat = tensor.reshape(-1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def _zero_nonfinite(flat: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)


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
