"""Where two computations of the same batch with the same weights part: pure functions on what modules gave.

How much two computations may differ is measured, not assumed: the first is done a second time with every weight changed
by one rounding. A tensor *differs* where it differs by more than ``TIMES`` as much as it does then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

#: of what one rounding of all weights changes; and of the rounding itself, which is the least that counts
TIMES, LEAST = 10.0, 8.0
INPUT, OUTPUT, GRADIENT = "input", "output", "gradient"


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a module took or gave: ``values``: some rows of it, [rows, last dimension]; ``shape``: of the whole.
    ``parts``: of an input, the values of all tensor-parallel ranks beside each other, should it be split."""

    layer: str
    what: str
    call: int
    shape: tuple[int, ...]
    values: np.ndarray
    is_joined: bool = False
    parts: np.ndarray | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Layer, kind of tensor and number of the call: one tensor in both runs."""
        return self.layer, self.what, self.call


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of one tensor in both computations: the L2 norm of the difference over that of the tensor, ``difference``; what a
    rounding of the weights makes of it, ``rounding``; and the ``limit`` beyond which it ``differs``. ``note``: why it
    was not compared, else ""."""

    layer: str
    what: str
    call: int
    difference: float
    rounding: float
    limit: float
    note: str = ""

    @property
    def differs(self) -> bool:
        """Whether it is more than rounding."""
        return bool(self.difference > self.limit)


def joined(ranks: Sequence[Sequence[tuple[Mapping[str, Any], np.ndarray]]], tp: int) -> list[Tensor]:
    """Tensors of all ranks of a replica (in their order: pipeline stages of ``tp`` ranks each), in the order of the
    computation: of parts of tensor-parallel ranks the whole, of what several stages have the last."""
    stages = [ranks[first : first + tp] for first in range(0, len(ranks), tp)]
    forward: dict[tuple[str, str, int], Tensor] = {}
    backward: dict[tuple[str, str, int], Tensor] = {}
    for stage in stages:
        for place, (about, values) in enumerate(stage[0]):
            shape, is_split = list(about["shape"]), about["sharded"] == "tp"
            parts = None
            if tp > 1 and values.ndim and (is_split or about["what"] == INPUT):
                parts = np.concatenate([rank[place][1] for rank in stage], axis=-1)
            if is_split and parts is not None:
                shape[-1] *= tp
            tensor = Tensor(
                about["layer"],
                about["what"],
                about["call"],
                tuple(shape),
                values if not is_split or parts is None else parts,
                is_split,
                parts,
            )
            kept = backward if tensor.what == GRADIENT else forward
            kept.pop(tensor.key, None)
            kept[tensor.key] = tensor
    order = [(about["layer"], about["what"], about["call"]) for stage in reversed(stages) for about, _ in stage[0]]
    return [*forward.values(), *(backward.pop(key) for key in order if key in backward)]


def compared(a: Sequence[Tensor], b: Sequence[Tensor], rounded: Sequence[Tensor], rounding: float) -> list[Difference]:
    """One row for each tensor of ``a``, in its order, that ``b`` has too. ``rounded``: ``a`` again, with its weights
    changed by ``rounding``."""
    others, again = ({tensor.key: tensor for tensor in tensors} for tensors in (b, rounded))
    out = []
    for own in a:
        if own.key not in others:
            continue
        noise = _distance(own, again[own.key]) if own.key in again else 0.0
        limit = max(TIMES * noise, LEAST * rounding)
        found, note = np.nan, ""
        tensor, other = _alike(own, others[own.key])
        if other.values.shape != tensor.values.shape or other.shape != tensor.shape:
            note = f"shapes {tensor.shape} and {other.shape}"
        else:
            found = _distance(tensor, other)
            if found > limit and (tensor.is_joined or other.is_joined):
                found = min(found, _distance(tensor, other, in_order=False))  # fused layers are split in another order
        out.append(
            Difference(
                layer=tensor.layer,
                what=tensor.what,
                call=tensor.call,
                difference=found,
                rounding=noise,
                limit=limit,
                note=note,
            )
        )
    return out


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both, with the whole of an input that tensor-parallel ranks of one have parts of."""
    if a.what != INPUT or a.shape == b.shape:
        return a, b
    wholes = [each if each.parts is None else replace(each, values=each.parts) for each in (a, b)]
    for first, second, shape in ((a, wholes[1], a.shape), (wholes[0], b, b.shape)):
        if first.values.shape == second.values.shape:
            return replace(first, shape=shape), replace(second, shape=shape)
    return a, b


def _distance(a: Tensor, b: Tensor, *, in_order: bool = True) -> float:
    first, second = (each.values.astype(np.float64) for each in (a, b))
    if not in_order:
        first, second = np.sort(first, axis=-1), np.sort(second, axis=-1)
    alike = (first == second) | (np.isnan(first) & np.isnan(second))
    gap = np.where(alike, 0.0, first - second)
    if not np.isfinite(gap).all():
        return np.inf
    size = max(float(np.linalg.norm(np.nan_to_num(first))), float(np.linalg.norm(np.nan_to_num(second))))
    return float(np.linalg.norm(gap)) / size if size else 0.0


def origin(rows: Sequence[Difference]) -> tuple[Difference | None, str]:
    """The first tensor that differs, and a sentence that names the module whose computation made it so."""
    given = {(row.layer, row.call): row for row in rows if row.what == INPUT}
    outputs = [row for row in rows if row.what == OUTPUT and not row.note]
    for place, row in enumerate(outputs):
        if not row.differs:
            continue
        own = given.get((row.layer, row.call))
        if own is not None and own.note:
            return row, f"{_name(row)}, or what {_enclosing(row.layer)} hands to it (its inputs have {own.note})"
        if own is None or not own.differs:
            return row, f"{_name(row)} computes another output from the same input"
        before = [each.layer for each in outputs[:place]]
        told = f", after {before[-1]}, whose output is the same," if before else ""
        return row, f"{_enclosing(row.layer)} hands another input to {row.layer}{told} and {row.layer} only follows"
    gradients = [row for row in rows if row.what == GRADIENT and not row.note]
    for place, row in enumerate(gradients):
        if row.differs:
            after = gradients[place - 1].layer if place else "the loss"
            told = "all outputs are the same; going backward, the gradient of the output of"
            return row, f"{told} {_name(row)} is the first that differs (that before it, of {after}, is the same)"
    return None, ""


def _name(row: Difference) -> str:
    return row.layer or "the model"


def _enclosing(layer: str) -> str:
    return layer.rpartition(".")[0] or "the model"
