"""Evaluating a causal language model through a strategy: sampled text and validation loss under any plan.

Only ``strategy.forward`` touches the model. Under tensor parallelism its logits may hold a slice of the vocabulary,
and under a pipeline only the last stage has any: both are put together by sums over all ranks, of tensors in which
each rank fills its own part. Every rank makes the same number of these sums, whatever part it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from workbench.engine.base.capabilities import Evaluating
from workbench.engine.frameworks.torch_common.device import rank_device


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` summed over all ranks, in place; as it is without a process group. Collective."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def logits_of(outputs: Any) -> torch.Tensor | None:
    """``logits`` of a transformers output (an object or a mapping); None on ranks without outputs."""
    if outputs is None:
        return None
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits


def gather_rows(strategy: Evaluating, rows: torch.Tensor | None, total: int, width: int) -> torch.Tensor:
    """Rows that each replica computed for its share, whole on every rank: [total, width], fp32, in replica order.

    ``rows``: [total / dp, width], the same on the tensor-parallel ranks of the last stage; None elsewhere. Collective.
    """
    gathered = torch.zeros(total, width, device=rank_device())
    if rows is not None and strategy.coordinates.tp == 0:
        gathered[shares(total, strategy)[strategy.coordinates.dp]] = rows.float()
    return sum_over_ranks(gathered)


def shares(total: int, strategy: Evaluating) -> list[slice]:
    """Contiguous shares of ``total`` samples, one a replica, as equal as can be."""
    dp = strategy.mesh.dp
    edges = [total * index // dp for index in range(dp + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]


@torch.no_grad()
def token_loss(strategy: Evaluating, tokens: torch.Tensor, *, vocabulary: int, rows: int) -> float:
    """Mean cross entropy in nats of each token of ``tokens`` [sequences, length] given those before it.

    Each replica computes its share, ``rows`` sequences at a time; the value is the same on every rank. Collective.
    The logarithm of the softmax's sum is taken over each slice of the vocabulary first, then over the slices.
    """
    own = shares(len(tokens), strategy)[strategy.coordinates.dp]
    # for each tensor-parallel rank, sequence and position: log of the sum of exp over its slice, and the logit of the
    # right token where it lies in the slice; "held" marks the slices that exist
    log_sums = torch.zeros(strategy.mesh.tp, len(tokens), tokens.shape[1] - 1, device=rank_device())
    right = torch.zeros_like(log_sums)
    held = torch.zeros_like(log_sums)
    for first in range(own.start, own.stop, rows):
        chunk = slice(first, min(first + rows, own.stop))
        piece = tokens[chunk].to(rank_device())
        logits = logits_of(strategy.forward({"input_ids": piece}))
        if logits is None:
            continue
        index, offset = _slice_of(strategy, logits.shape[-1], vocabulary)
        if index is None:
            continue
        log_sums[index, chunk], right[index, chunk] = _slice_terms(logits, piece, offset, vocabulary)
        held[index, chunk] = 1
    sum_over_ranks(log_sums)
    sum_over_ranks(right)
    sum_over_ranks(held)
    log_sums.masked_fill_(held == 0, -torch.inf)
    return float((log_sums.logsumexp(0) - right.sum(0)).mean())


def _slice_of(strategy: Evaluating, width: int, vocabulary: int) -> tuple[int | None, int]:
    """Which slice of the vocabulary this rank answers for (None: another rank has the same), and where it begins."""
    tp = strategy.coordinates.tp
    if width >= vocabulary:
        return (0 if tp == 0 else None), 0
    return tp, tp * width


def _slice_terms(
    logits: torch.Tensor, tokens: torch.Tensor, offset: int, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the sum of exp over the slice, and the right token's logit or 0: both [sequences, length - 1]."""
    width = min(logits.shape[-1], vocabulary - offset)
    scores = logits[:, :-1, :width].float()
    wanted = tokens[:, 1:] - offset
    inside = (wanted >= 0) & (wanted < width)
    found = scores.gather(-1, wanted.clamp(0, width - 1).unsqueeze(-1)).squeeze(-1)
    return scores.logsumexp(-1), torch.where(inside, found, 0.0)


@torch.no_grad()
def generate(
    strategy: Evaluating,
    prompt: Sequence[int],
    *,
    tokens: int,
    vocabulary: int,
    temperature: float = 0.7,
    seed: int = 0,
) -> list[int]:
    """``prompt`` continued by ``tokens`` sampled tokens, on rank 0 (elsewhere maybe the prompt only). Collective.

    The buffer has its full length from the beginning (a causal model does not see what comes after), so that the
    messages of a pipeline keep their shape. Only the first replica computes; where it spans several ranks all of them
    draw the same token, from the same scores and a generator of the same ``seed``.
    """
    first_replica = strategy.coordinates.dp == 0
    alone = strategy.mesh.tp * strategy.mesh.pp == 1
    if alone and not first_replica:
        return list(prompt)
    generator = torch.Generator().manual_seed(seed)
    buffer = torch.zeros(1, len(prompt) + tokens, dtype=torch.long)
    buffer[0, : len(prompt)] = torch.tensor(prompt)
    for position in range(len(prompt), buffer.shape[1]):
        outputs = strategy.forward({"input_ids": buffer.to(rank_device())}) if first_replica else None
        scores = _scores(strategy, logits_of(outputs), position - 1, vocabulary)
        if not alone:
            sum_over_ranks(scores)
        chances = torch.softmax(scores.cpu() / temperature, dim=0)
        buffer[0, position] = torch.multinomial(chances, 1, generator=generator)[0]
    return buffer[0].tolist()


def _scores(strategy: Evaluating, logits: torch.Tensor | None, position: int, vocabulary: int) -> torch.Tensor:
    """This rank's part of the logits [vocabulary] at ``position`` of the first sequence; zeros where it has none."""
    scores = torch.zeros(vocabulary, device=rank_device())
    if logits is None:
        return scores
    index, offset = _slice_of(strategy, logits.shape[-1], vocabulary)
    if index is not None:
        width = min(logits.shape[-1], vocabulary - offset)
        scores[offset : offset + width] = logits[0, position, :width].float()
    return scores
