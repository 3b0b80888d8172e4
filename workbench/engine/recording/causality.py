"""The causality probe: another last token must not change what a causal model says about earlier positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workbench.engine.base.batch import Batch, contents
from workbench.engine.base.capabilities import Validating
from workbench.engine.base.containers import entries, rebuilt

#: positions that a probe needs
_LEAST = 3


def probe(strategy: Validating, batch: Batch) -> dict[str, Any] | None:
    """How far outputs move when the last position of each sequence of ``batch`` is another one.

    ``{"earlier": ..., "last": ...}``: the largest changes of the outputs at earlier positions and at the last one; the
    changes are ``{}`` on a pipeline stage without outputs. None where the batch has no sequences of whole numbers
    [samples, positions], or the outputs are not floating point numbers [samples, positions, ...]. Collective over a
    replica's ranks.
    """
    changed = _with_other_ends(contents(batch))
    if changed is None:
        return None
    ids, other = changed
    first, second = (strategy.evaluated(each, outputs=True) for each in (contents(batch), other))
    if first is None or second is None:
        return {}
    before, after = (_by_position(found[0], ids.shape) for found in (first, second))
    if before is None or after is None:
        return None
    moved = (after.float() - before.float()).abs().flatten(2).amax(2)
    return {"earlier": float(moved[:, :-1].max()), "last": float(moved[:, -1].max())}


def _with_other_ends(batch: Batch) -> tuple[torch.Tensor, Batch] | None:
    """The sequences of a batch, and the batch with other ids (of those that it has) at the last position."""
    if isinstance(batch, Mapping) and "input_ids" in batch:
        place = list(batch).index("input_ids")
    elif isinstance(batch, tuple | list) and len(batch):
        place = 0
    else:
        return None
    held = [entry for _, entry in entries(batch) or ()]
    ids = held[place]
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        return None
    known = ids.unique()
    if ids.shape[1] < _LEAST or known.numel() < 2:
        return None
    other = ids.clone()
    turn = torch.searchsorted(known, ids[:, -1].contiguous())
    other[:, -1] = known[(turn + 1) % known.numel()]
    return ids, rebuilt(batch, [*held[:place], other, *held[place + 1 :]])


def _by_position(outputs: Any, shape: torch.Size) -> torch.Tensor | None:
    """The logits, or the first output, with a value for each position."""
    found = getattr(outputs, "logits", None)
    candidates = [found] if found is not None else [entry for _, entry in entries(outputs) or [("", outputs)]]
    for each in candidates:
        if isinstance(each, torch.Tensor) and each.is_floating_point() and each.dim() > 2 and each.shape[:2] == shape:
            return each
    return None
