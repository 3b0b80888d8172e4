"""Computes statistics of gradients during a step, as sums that can be added exactly over parts, layers and ranks.

A ``GradientCollector`` computes the statistics of one scope (local or reduced gradients) of one step on the device.
``finish`` starts their copy to the host and returns ``PendingRecords``, which become records once the copy is complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.core.records import GradientSketch, GradientStats, HistogramStats
from workbench.engine.base.parts import Comparison, GradientPart
from workbench.engine.watch.torch import tensor_statistics as statistics
from workbench.engine.watch.torch.host_copy import HostCopy
from workbench.engine.watch.torch.sketch import Sketcher
from workbench.engine.watch.torch.tensor_statistics import BIAS, MAX_ABS, NORM, SUM, ZEROS

#: exponent of the smallest normal number of each precision
SMALLEST_NORMAL = {"fp32": -126, "bf16": -126, "fp16": -14}
#: value of a count that was not taken
NOT_COUNTED = -1
#: largest number of elements processed at a time
CHUNK_ELEMENTS = 2**24


@dataclass(slots=True)
class PendingRecords:
    """Statistics of one scope of one step that are being copied to the host; call ``records`` once ``ready`` is
    true."""

    step: int
    rank: int
    scope: str
    keys: list[tuple[str, str]]
    numel: list[int]
    scales: list[float]
    copy: HostCopy
    compared: list[tuple[str, str]]
    dot_kind: str
    smallest_normal: int
    sampled: bool
    sketched: list[tuple[str, str]]
    factor: float | torch.Tensor = 1.0
    reports: Callable[[str, str], bool] | None = None

    def ready(self) -> bool:
        """Whether the statistics have arrived on the host."""
        return self.copy.ready()

    def records(self) -> list[GradientStats | HistogramStats | GradientSketch]:
        """Make one record per layer and kind of sharding, in the order they were seen, then their histograms or
        sketches.

        With ``reports`` (one replica), copies of the records follow that describe the reduced gradient.
        """
        if not self.keys:
            return []
        own = self._own_records()
        if self.sketched:
            return [*own, *self._sketches(self.copy.arrays()[-1])]
        return [*own] if self.reports is None else [*own, *copy_as_reduced(own, self.reports)]

    def _sketches(self, values: np.ndarray) -> list[GradientSketch]:
        joined: dict[tuple[str, str], list[np.ndarray]] = {}
        for key, row in zip(self.sketched, values, strict=True):
            joined.setdefault(key, []).append(row)
        return [
            GradientSketch(
                step=self.step, rank=self.rank, layer=layer, sharded=sharded, values=np.concatenate(rows).tolist()
            )
            for (layer, sharded), rows in joined.items()
        ]

    def _own_records(self) -> list[GradientStats | HistogramStats]:
        places: dict[tuple[str, str], int] = {}
        index = np.array([places.setdefault(key, len(places)) for key in self.keys])
        factor = float(self.factor)
        scale = np.array(self.scales) / factor
        first, *rest = self.copy.arrays()
        numel = _totals(index, np.array(self.numel, dtype=np.int64))
        counts, dot, slice_norm, slice_numel, *_ = rest
        sums = _totals(index, np.column_stack([first[:, SUM] / scale, (first[:, NORM] / scale) ** 2]))
        zeros_of_part = first[:, ZEROS].astype(np.int64)
        zeros, nonfinite = _totals(index, zeros_of_part), _totals(index, counts[:, -1])
        by_exponent = _totals(index, spread(counts, np.array(self.numel), zeros_of_part))
        underflow = by_exponent[:, : BIAS + self.smallest_normal].sum(axis=1)
        largest = np.zeros(len(places))
        np.maximum.at(largest, index, first[:, MAX_ABS] / scale)
        compared = np.array([places[key] for key in self.compared], dtype=np.int64)
        dots = _totals(compared, dot / scale[0] ** 2 / factor, len(places))  # the reduced one has the factor
        known_dots = dots if self.dot_kind == "exact" else np.full(len(places), math.nan)
        shift = np.zeros(len(places), dtype=np.int64)
        shift[index] = np.round(np.log2(scale)).astype(np.int64)
        columns = (numel, *sums.T, largest, zeros, nonfinite, known_dots, underflow)
        made: list[GradientStats | HistogramStats] = [
            GradientStats(
                step=self.step,
                rank=self.rank,
                layer=layer,
                scope=self.scope,
                sharded=sharded,
                numel=elements,
                sum=total,
                sum_sq=squares,
                max_abs=peak,
                zero_count=zero,
                nonfinite_count=bad,
                dot=product,
                dot_kind="exact" if self.dot_kind == "exact" else "",
                underflow_count=low,
            )
            for (layer, sharded), elements, total, squares, peak, zero, bad, product, low in _rows(places, columns)
        ]
        if self.dot_kind == "slice":
            sizes = _totals(compared, slice_numel, len(places))
            squares = _totals(compared, (slice_norm / scale[0]) ** 2, len(places))
            made += self._slices(list(places), sizes, squares, dots)
        made += self._histograms(places, by_exponent, shift, (zeros, nonfinite, underflow))
        return made

    def _norms(
        self, keys: list[tuple[str, str]], numel: np.ndarray, squares: np.ndarray
    ) -> list[GradientStats | HistogramStats]:
        return [
            GradientStats(
                step=self.step,
                rank=self.rank,
                layer=layer,
                scope=self.scope,
                sharded=sharded,
                numel=int(numel[row]),
                sum=math.nan,
                sum_sq=float(squares[row]),
                max_abs=math.nan,
                zero_count=NOT_COUNTED,
                nonfinite_count=0 if math.isfinite(squares[row]) else NOT_COUNTED,
                underflow_count=NOT_COUNTED,
            )
            for row, (layer, sharded) in enumerate(keys)
        ]

    def _slices(
        self, keys: list[tuple[str, str]], numel: np.ndarray, squares: np.ndarray, dots: np.ndarray
    ) -> list[GradientStats]:
        """Records of the local gradient over this rank's own slice, for which the product with the reduced gradient is
        known."""
        whole = self._norms(keys, numel, squares)
        return [
            replace(row, scope="slice", sharded="dp", dot=float(dots[place]), dot_kind="slice")
            for place, row in enumerate(whole)
            if isinstance(row, GradientStats)
        ]

    def _histograms(
        self,
        places: Iterable[tuple[str, str]],
        by_exponent: np.ndarray,
        shift: np.ndarray,
        counts: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> list[HistogramStats]:
        filled = by_exponent > 0
        is_any = filled.any(axis=1)
        first = np.where(is_any, filled.argmax(axis=1), BIAS)
        end = np.where(is_any, filled.shape[1] - filled[:, ::-1].argmax(axis=1), BIAS)
        columns = (first - BIAS - shift, first, end, *counts)
        return [
            HistogramStats(
                step=self.step,
                rank=self.rank,
                layer=layer,
                scope=self.scope,
                sharded=sharded,
                first_exponent=exponent,
                counts=row[begin:stop].tolist(),
                zero_count=zero,
                nonfinite_count=bad,
                underflow_count=low,
                sampled=self.sampled,
            )
            for row, ((layer, sharded), exponent, begin, stop, zero, bad, low) in zip(
                by_exponent, _rows(places, columns), strict=True
            )
        ]


def _rows(places: Iterable[tuple[str, str]], columns: Sequence[np.ndarray]) -> Iterator[tuple[Any, ...]]:
    """One tuple per place: its key, and its value in each column as a plain number."""
    return zip(places, *(column.tolist() for column in columns), strict=True)


def spread(counts: np.ndarray, numel: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Counts of non-zero finite elements, int64 [parts, buckets - 1], from the counts of all elements or of a sample.

    In a sample the lowest bucket is left out, as zeros (whose number is known) cannot be told there from magnitudes
    below 2**-126. The others are scaled so that they add up to the number of elements.
    """
    found = counts[:, :-1].copy()
    found[:, 0] -= zeros
    is_sample = counts.sum(axis=1) < numel
    if is_sample.any():
        shares = counts[is_sample, :-1].astype(float)
        shares[:, 0] = 0
        total = shares.sum(axis=1, keepdims=True)
        whole = (numel - zeros - counts[:, -1])[is_sample, None]
        upto = np.cumsum(shares / np.where(total > 0, total, 1), axis=1) * whole
        found[is_sample] = np.diff(np.round(upto), axis=1, prepend=0)
    return found


def copy_as_reduced(
    records: Iterable[GradientStats | HistogramStats], reports: Callable[[str, str], bool]
) -> list[GradientStats | HistogramStats]:
    """Copy records of the local gradient as records of the reduced one; with one replica the two are equal.

    ``reports(layer, sharded)``: whether this rank reports that layer's reduced gradient.
    """
    made: list[GradientStats | HistogramStats] = []
    for row in records:
        if not reports(row.layer, row.sharded):
            continue
        if isinstance(row, GradientStats):
            made.append(replace(row, scope="reduced", dot=math.nan, dot_kind=""))
        else:
            made.append(replace(row, scope="reduced"))
    return made


class GradientCollector:
    """Computes the statistics of one scope of one step. Pass ``take`` to ``Strategy.watch_batches``.

    ``sampled``: histograms are estimated from a sample of the
    elements. ``keep``: keep the gradients until ``finish``, for ``compare``.
    ``precision``: of the training, for underflow counts. ``sketcher``: takes a sketch of each gradient as well.
    Statistics cover the finite elements, in single precision on a CPU (relative error below 1e-6) and in double
    precision on a GPU. They do not overflow for fp16 or bf16 gradients that carry a loss scale.
    """

    def __init__(
        self,
        *,
        keep: bool = False,
        sampled: bool = False,
        precision: str = "fp32",
        sketcher: Sketcher | None = None,
    ) -> None:
        self._sampled = sampled
        self.keep = keep
        self._sketcher = sketcher
        self._smallest_normal = SMALLEST_NORMAL[precision]
        self._clear()

    def _clear(self) -> None:
        self.parts: list[GradientPart] = []
        self._keys: list[tuple[str, str]] = []
        self._numel: list[int] = []
        self._scales: list[float] = []
        self._sources: list[int] = []
        self._figures: list[torch.Tensor] = []
        self._counts: list[torch.Tensor] = []
        self._comparison: tuple[str, list[torch.Tensor]] = ("", [])
        self._sketched: list[tuple[str, str]] = []
        self._sketches: list[torch.Tensor] = []
        self._seen: dict[str, int] = {}
        self._factor: float | torch.Tensor = 1.0

    def multiply(self, factor: float | torch.Tensor) -> None:
        """Let the statistics be those of the gradients times ``factor``; histograms to the nearest power of two."""
        self._factor = factor

    def take(self, parts: Sequence[GradientPart]) -> None:
        """Compute the statistics of ``parts`` now, as the reduction may overwrite the gradients afterwards."""
        parts = [part for part in parts if part.tensor.numel()]
        if self.keep:
            self.parts += parts
        if self._sketcher is not None and parts:
            keys, values = self._sketcher.take(parts, self._seen)
            self._sketched += keys
            self._sketches.append(values)
        for chunk in _chunks(parts):
            tensors = [tensor for _, tensor in chunk]
            found, counts = statistics.full_set(tensors, sampled=self._sampled)
            self._counts.append(counts)
            self._figures.append(found)
            for part, tensor in chunk:
                self._keys.append((part.layer, part.sharded))
                self._sources.append(id(part.source))
                self._numel.append(tensor.numel())
                self._scales.append(part.scale)

    def replace(self, parts: Sequence[GradientPart]) -> None:
        """As ``take``, in place of what was taken of the same sources."""
        again = {id(part.source) for part in parts} & set(self._sources)
        if again:
            rows = [row for row, source in enumerate(self._sources) if source not in again]
            self._figures = [torch.cat(self._figures)[rows]]
            self._counts = [torch.cat(self._counts)[rows]]
            self._keys = [self._keys[row] for row in rows]
            self._numel = [self._numel[row] for row in rows]
            self._scales = [self._scales[row] for row in rows]
            self._sources = [self._sources[row] for row in rows]
        self.take(parts)

    def compare(self, comparison: Comparison | None) -> None:
        """Compute the inner products of the kept ``parts`` with the reduced gradients."""
        if comparison is None or not comparison.pairs:
            return
        products = statistics.dots(comparison.pairs)
        sizes = torch.tensor([sum(mine.numel() for mine, _ in pairs) for pairs in comparison.pairs])
        lengths = torch.zeros_like(products)
        if comparison.kind == "slice":
            lengths = statistics.norms([mine for pairs in comparison.pairs for mine, _ in pairs])
        self._comparison = (comparison.kind, [products, lengths, sizes])

    def equals_reduced(self) -> None:
        """Declare that there is one replica, so that every local gradient equals the reduced one."""
        self._comparison = ("same", [])

    def finish(
        self, step: int, rank: int, scope: str, reports: Callable[[str, str], bool] | None = None
    ) -> PendingRecords:
        """Start the copy of the statistics to the host and empty the collector.

        ``reports(layer, sharded)``: with one replica these statistics describe the reduced gradient too; whether this
        rank reports that of a layer. None with several replicas.
        """
        tensors = [torch.cat(self._figures)] if self._figures else [torch.zeros(0)]
        kind, compared = self._comparison
        keys = [(part.layer, part.sharded) for part in self.parts] if compared else []
        if self._figures:
            if kind == "same":
                squares = tensors[0][:, NORM].square()
                keys, kind, compared = self._keys, "exact", [squares, squares, squares]
            empty = torch.zeros(0)
            tensors += [torch.cat(self._counts), *(compared or [empty, empty, empty])]
            if self._sketches:
                tensors.append(torch.cat(self._sketches))
        pending = PendingRecords(
            step=step,
            rank=rank,
            scope=scope,
            keys=self._keys,
            numel=self._numel,
            scales=self._scales,
            copy=HostCopy(tensors),
            compared=keys,
            dot_kind=kind,
            smallest_normal=self._smallest_normal,
            sampled=self._sampled,
            sketched=self._sketched,
            factor=self._factor,
            reports=reports,
        )
        self._clear()
        return pending


def _chunks(parts: Sequence[GradientPart]) -> Iterator[list[tuple[GradientPart, torch.Tensor]]]:
    """The gradients in chunks of at most ``CHUNK_ELEMENTS`` elements, larger ones cut up: what is computed from a chunk
    needs temporary copies of it."""
    chunk: list[tuple[GradientPart, torch.Tensor]] = []
    elements = 0
    for part in parts:
        flat = part.tensor.detach().reshape(-1)
        for piece in (flat,) if flat.numel() <= CHUNK_ELEMENTS else flat.split(CHUNK_ELEMENTS):
            if chunk and elements + piece.numel() > CHUNK_ELEMENTS:
                yield chunk
                chunk, elements = [], 0
            chunk.append((part, piece))
            elements += piece.numel()
    if chunk:
        yield chunk


def _totals(index: np.ndarray, values: np.ndarray, size: int = 0) -> np.ndarray:
    """Sum the rows of ``values`` by ``index``; ``size``: number of sums (0: as many as ``index`` needs)."""
    count = size or int(index.max()) + 1
    if len(values) == count and np.array_equal(index, np.arange(count)):  # one row each, as of layers without a bias
        return values
    total = np.zeros((count, *values.shape[1:]), dtype=values.dtype)
    np.add.at(total, index, values)
    return total
