"""Entropy and largest logit of attention, from some of its queries, wherever a model computes attention by torch's
``scaled_dot_product_attention`` or by a softmax of its own (transformers' "eager").

The product of all queries and keys is not made a second time: ``QUERIES`` positions, evenly spaced, stand for all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from workbench.engine.watch.inside.taps import Taps

#: query positions that are looked at, of each head and sample
QUERIES = 16
#: class or name of a module whose softmax over keys is attention
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)

#: told of an attention: its logits at some queries, masked with -inf, [..., queries, keys]
LogitsShown = Callable[[torch.Tensor], None]


@contextmanager
def attention_seen(taps: Taps, shown: LogitsShown) -> Iterator[None]:
    """While entered, ``shown`` gets the logits of every attention that is computed in a module of ``taps``."""
    product, softmax, method = F.scaled_dot_product_attention, torch.softmax, torch.Tensor.softmax
    inside = False

    def seen(compute: Callable[..., Any], logits: Callable[..., torch.Tensor | None]) -> Callable[..., Any]:
        def computed(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside or not taps.calls or not taps.is_counted:
                return compute(*args, **kwargs)
            inside = True  # the fallback of one may call the other
            try:
                with torch.no_grad():
                    found = logits(*args, **kwargs)
                    if found is not None:
                        shown(found)
                return compute(*args, **kwargs)
            finally:
                inside = False

        return computed

    def own(values: Any, dim: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        return softmax_logits(values, dim) if _is_attention(taps) else None

    F.scaled_dot_product_attention = seen(product, product_logits)
    torch.softmax = seen(softmax, own)
    torch.Tensor.softmax = seen(method, own)  # type: ignore[method-assign]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, torch.softmax = product, softmax
        torch.Tensor.softmax = method  # type: ignore[method-assign]


def _is_attention(taps: Taps) -> bool:
    call = taps.calls[-1]
    return bool(_ATTENTION.search(type(call.module).__name__) or _ATTENTION.search(call.name.rpartition(".")[2]))


def _places(count: int, device: torch.device) -> torch.Tensor:
    """Evenly spaced positions among ``count``, the last one among them."""
    if count <= QUERIES:
        return torch.arange(count, device=device)
    return (torch.arange(1, QUERIES + 1, device=device) * count) // QUERIES - 1


def product_logits(  # noqa: PLR0917  (as torch has them)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Logits of the attention that ``scaled_dot_product_attention`` computes from the same arguments, at some queries:
    fp32 [..., queries, keys], -inf where masked."""
    length, keys = query.shape[-2], key.shape[-2]
    places = _places(length, query.device)
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = (query.index_select(-2, places).float() @ key.float().transpose(-2, -1)) * factor
    if is_causal:
        later = torch.arange(keys, device=query.device) > places[:, None]
        logits = logits.masked_fill(later, -math.inf)
    if attn_mask is not None:
        rows = attn_mask if attn_mask.shape[-2] == 1 else attn_mask.index_select(-2, places)
        logits = logits.masked_fill(~rows, -math.inf) if rows.dtype == torch.bool else logits + rows
    return logits


def softmax_logits(values: Any, dim: Any) -> torch.Tensor | None:
    """Of what a softmax over keys is taken, [..., queries, keys], at some queries; None for anything else."""
    if not isinstance(values, torch.Tensor) or values.dim() < 3 or dim not in (-1, values.dim() - 1):
        return None
    return values.detach().index_select(-2, _places(values.shape[-2], values.device)).float()


@torch.no_grad()
def summed(logits: torch.Tensor) -> tuple[int, torch.Tensor]:
    """How many queries there are that may attend to a key; and, float64 [3]: their entropies, summed, in nats; the
    entropies if each attended to its keys alike; and the largest logit.

    A key is masked by -inf, or by the most negative number of a floating point type (added, by transformers).
    """
    masked = logits < torch.finfo(torch.float16).min * 0.99
    logits = logits.masked_fill(masked, -math.inf)
    visible = (~masked).sum(-1)
    has_keys = visible > 0
    chances = torch.softmax(logits.double(), dim=-1).nan_to_num(0.0)
    entropy = torch.special.entr(chances).sum(-1)
    uniform = visible.clamp(min=1).double().log()
    found = torch.stack([entropy[has_keys].sum(), uniform.sum(), logits.max().double()])
    return int(has_keys.sum()) if logits.device.type == "cpu" else has_keys.numel(), found
