"""Evaluates a causal language model through a strategy: sampled text and validation loss under any plan.

The model is called through ``strategy.forward`` only. Under tensor parallelism its logits may cover a slice of the
vocabulary, and under pipeline parallelism only the last stage has logits. Both are assembled by all-reduce sums of
tensors in which each rank fills its own part. Every rank takes part in the same number of sums.
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
    """Sum ``tensor`` over all ranks in place and return it; unchanged without a process group. Collective."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def logits_of(outputs: Any) -> torch.Tensor | None:
    """The ``logits`` of a transformers output (an object or a mapping); None if ``outputs`` is None."""
    if outputs is None:
        return None
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits


def gather_rows(strategy: Evaluating, rows: torch.Tensor | None, total: int, width: int) -> torch.Tensor:
    """Gather the rows that each replica computed: returns [total, width], fp32, in replica order, on every rank.

    ``rows``: [total / dp, width], equal on the ranks of the last stage; None on other stages.
    Collective.
    """
    gathered = torch.zeros(total, width, device=rank_device())
    if rows is not None and strategy.coordinates.leads:
        gathered[shares(total, strategy)[strategy.coordinates.dp]] = rows.float()
    return sum_over_ranks(gathered)


def shares(total: int, strategy: Evaluating) -> list[slice]:
    """Divide ``total`` samples into contiguous shares of nearly equal size, one per data-parallel replica."""
    dp = strategy.mesh.dp
    edges = [total * index // dp for index in range(dp + 1)]
    return [slice(first, last) for first, last in pairwise(edges)]


@torch.no_grad()
def token_loss(strategy: Evaluating, tokens: torch.Tensor, *, vocabulary: int, rows: int) -> float:
    """Mean cross entropy in nats per token of ``tokens`` [sequences, length], each predicted from those before it.

    Each replica computes its share, ``rows`` sequences at a time; the result is the same on every rank. Collective.
    The log-sum-exp of the softmax is taken over each slice of the vocabulary first, then over the slices.
    """
    own = shares(len(tokens), strategy)[strategy.coordinates.dp]
    # [tensor-parallel rank, sequence, position]: log-sum-exp over the rank's slice; logit of the target token if it
    # lies in the slice; 1 if the slice exists
    log_sums = torch.zeros(strategy.mesh.tp, len(tokens), tokens.shape[1] - 1, device=rank_device())
    targets = torch.zeros_like(log_sums)
    present = torch.zeros_like(log_sums)
    for first in range(own.start, own.stop, rows):
        chunk = slice(first, min(first + rows, own.stop))
        piece = tokens[chunk].to(rank_device())
        logits = logits_of(strategy.forward({"input_ids": piece}))
        if logits is None:
            continue
        index, offset = _vocabulary_slice(strategy, logits.shape[-1], vocabulary)
        if index is None:
            continue
        log_sums[index, chunk], targets[index, chunk] = _slice_terms(logits, piece, offset, vocabulary)
        present[index, chunk] = 1
    sum_over_ranks(log_sums)
    sum_over_ranks(targets)
    sum_over_ranks(present)
    log_sums.masked_fill_(present == 0, -torch.inf)
    return float((log_sums.logsumexp(0) - targets.sum(0)).mean())


def _vocabulary_slice(strategy: Evaluating, width: int, vocabulary: int) -> tuple[int | None, int]:
    """Index and offset of the vocabulary slice that this rank contributes; index None: another rank contributes it."""
    if width >= vocabulary:
        return (0 if strategy.coordinates.leads else None), 0
    tp = strategy.coordinates.tp
    return tp, tp * width


def _slice_terms(
    logits: torch.Tensor, tokens: torch.Tensor, offset: int, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp over the slice, and the target token's logit or 0 outside it; both [sequences, length - 1]."""
    width = min(logits.shape[-1], vocabulary - offset)
    scores = logits[:, :-1, :width].float()
    wanted = tokens[:, 1:] - offset
    inside = (wanted >= 0) & (wanted < width)
    target_logits = scores.gather(-1, wanted.clamp(0, width - 1).unsqueeze(-1)).squeeze(-1)
    return scores.logsumexp(-1), torch.where(inside, target_logits, 0.0)


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
    """Return ``prompt`` followed by ``tokens`` sampled tokens on rank 0; other replicas may return the prompt only.

    The buffer has its final length from the start, so that pipeline messages keep their shape; a causal model ignores
    later positions. Only the first replica computes. If it spans several ranks, all of them sample the same token, from
    the same scores and with generators of the same ``seed``. Collective.
    """
    first_replica = strategy.coordinates.dp == 0
    alone = strategy.mesh.replica_size == 1
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
        probabilities = torch.softmax(scores.cpu() / temperature, dim=0)
        buffer[0, position] = torch.multinomial(probabilities, 1, generator=generator)[0]
    return buffer[0].tolist()


def _scores(strategy: Evaluating, logits: torch.Tensor | None, position: int, vocabulary: int) -> torch.Tensor:
    """This rank's part of the logits [vocabulary] at ``position`` of the first sequence; zeros elsewhere."""
    scores = torch.zeros(vocabulary, device=rank_device())
    if logits is None:
        return scores
    index, offset = _vocabulary_slice(strategy, logits.shape[-1], vocabulary)
    if index is not None:
        width = min(logits.shape[-1], vocabulary - offset)
        scores[offset : offset + width] = logits[0, position, :width].float()
    return scores
