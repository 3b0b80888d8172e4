"""Sequence parallelism: tensor-parallel ranks share the positions of a sequence between the layers that they split.

Megatron-LM's form (Korthikanti et al. 2022): norms and residuals are computed for a rank's own positions, which are
gathered before a split layer and scattered after it. Colossal-AI's "ring" gathers them piece by piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from colossalai.shardformer.layer import Linear1D_Row
from colossalai.shardformer.layer.utils import SeqParallelUtils
from torch.nn import functional

from workbench.core.frameworks import PlanOptions
from workbench.engine.base.parts import BatchObserver
from workbench.engine.frameworks.colossal.local_gradients import before_pipeline_sync
from workbench.engine.frameworks.torch_common.local_gradients import PartsOf
from workbench.engine.frameworks.torch_common.parameters import RankParameter
from workbench.errors import ConfigError

#: classes that were compared with one process
MODELS = ("LlamaForCausalLM", "LlamaForSequenceClassification")


def check_sequences(model: torch.nn.Module, plan: PlanOptions) -> None:
    """Refuse, with ``ConfigError``, a model that is not trained rightly when ranks share positions of a sequence."""
    name = type(model).__name__
    if plan.sequence_parallel and name not in MODELS:
        raise ConfigError(
            f"--sequence-parallel {plan.sequence_parallel} cannot train a {name}, only {' and '.join(MODELS)}: "
            "leave it out",
            field="--sequence-parallel",
        )


def mark_biases(model: torch.nn.Module) -> None:
    """Let the biases of row-split layers be summed over the ranks, each of which adds them to its own positions:
    upstream sums those of norms only (shardformer/layer/normalization.py:351)."""
    for module in model.modules():
        if isinstance(module, Linear1D_Row) and module.bias is not None:
            SeqParallelUtils.marked_as_sp_partial_derived_param(module.bias)


class SequenceReduction:
    """Reduces gradients after the last backward pass of a step: those of weights that each rank used for its own
    positions are added up over the tensor-parallel ranks, then all are averaged over the replicas.

    ``model``: Colossal-AI's wrapper. Its DDP averages while backward runs, when those sums are not there yet.
    """

    afterwards = True

    def __init__(self, model: Any) -> None:
        self._model = model

    def looks_at(self, loss: torch.Tensor) -> None:
        """The graph does not matter: nothing is reduced while backward runs."""

    def finish(self) -> None:
        """Reduce. Collective."""
        self._model.sync_sp_grads()
        self._model.sync_dp_grads()

    def watching(
        self, items: Sequence[RankParameter], parts_of: PartsOf, show: BatchObserver, *, keep: bool
    ) -> AbstractContextManager[None]:
        """Show the complete local gradients of ``items`` before they are averaged."""
        return before_pipeline_sync(self._model, items, parts_of, show, keep=keep)


def padded(arguments: Mapping[str, Any], size: int, dtype: torch.dtype) -> tuple[dict[str, Any], int]:
    """The arguments of a body's forward pass for positions that ``size`` ranks can share, and how many there were.

    What is appended stands behind all others, so a causal attention never sees it. The mask is the causal one of all
    positions, of shape (samples, 1, positions, positions), with padding hidden, in ``dtype``: upstream leaves it out
    where sdpa would add it by itself, and then computes attention without sdpa (modeling/llama.py:576).
    """
    found = dict(arguments)
    tokens = found.get("input_ids")
    like = found["inputs_embeds"][..., 0] if tokens is None else tokens
    length = like.shape[1]
    more = -length % size
    for name in ("input_ids", "position_ids"):
        if found.get(name) is not None:
            found[name] = functional.pad(found[name], (0, more))
    if found.get("inputs_embeds") is not None:
        found["inputs_embeds"] = functional.pad(found["inputs_embeds"], (0, 0, 0, more))
    found["attention_mask"] = _causal(found.get("attention_mask"), like, length + more, dtype)
    found["cache_position"] = None
    return found, length


def _causal(mask: torch.Tensor | None, like: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    lowest = torch.finfo(dtype).min
    causal = torch.full((length, length), lowest, dtype=dtype, device=like.device).triu(1)
    whole = causal.expand(like.shape[0], 1, length, length)
    if mask is None:
        return whole
    if mask.dim() == 4:  # made by the cell
        if mask.shape[-1] != length:
            raise ConfigError(
                f"--sequence-parallel needs sequences of {length} positions for an attention mask of 4 dims, not "
                f"{mask.shape[-1]}: pad the samples",
                field="--sequence-parallel",
            )
        return mask
    hidden = functional.pad(mask, (0, length - mask.shape[1]), value=1) == 0
    return whole.masked_fill(hidden[:, None, None, :], lowest)
