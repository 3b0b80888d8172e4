"""What is in a batch, and how it is cut. Loads no tensor library: ranks of any framework count and cut batches so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.engine.base.batch import Batch, StandIn, contents
from workbench.engine.base.tensor import is_tensor
from workbench.errors import ConfigError


def samples_in(batch: Batch) -> int:
    """Number of samples of a batch: the length of dim 0; 0 for a ``StandIn``.

    Raises ``ConfigError`` unless all its tensors agree on it.
    """
    if isinstance(batch, StandIn):
        return 0
    sizes = {tensor.shape[0] if tensor.dim() else -1 for tensor in tensors_in(batch)}
    if not sizes:
        raise ConfigError(f"the batch (a {type(batch).__name__}) holds no tensor", field="dataset")
    if len(sizes) > 1 or -1 in sizes:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(batch))
        raise ConfigError(
            f"the tensors of a batch have shapes {shapes}: dim 0 of each must be the sample", field="dataset"
        )
    return next(iter(sizes))


def counts_tokens(batch: Batch, tokens_per_sample: int | None) -> bool:
    """Whether throughput counts tokens: ``tokens_per_sample`` exceeds 1 or, if it is None, the batch has ``input_ids``
    of shape [samples, tokens]."""
    if tokens_per_sample is not None:
        return tokens_per_sample > 1
    batch = contents(batch)
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return ids is not None and is_tensor(ids) and ids.dim() > 1


def tokens_in(batch: Batch, tokens_per_sample: int | None) -> int:
    """Number of tokens of a batch, or of samples if it has no tokens. ``tokens_per_sample`` None: read from the
    batch."""
    if isinstance(batch, StandIn):
        return 0
    if tokens_per_sample is None:
        return batch["input_ids"].numel() if counts_tokens(batch, None) else samples_in(batch)
    return samples_in(batch) * tokens_per_sample


def split(batch: Batch, parts: int) -> list[Batch]:
    """Split ``batch`` along dim 0 into ``parts`` equal parts (views, in order). Raises ``ConfigError`` if that
    fails."""
    if parts == 1 or isinstance(batch, StandIn):
        return [batch] * parts
    samples = samples_in(batch)
    if samples % parts:
        raise ConfigError(
            f"a batch of {samples} samples cannot be split into {parts} equal parts: "
            f"use a multiple of {parts} as batch size, such as {max(1, round(samples / parts)) * parts}",
            field="--batch-size",
        )
    size = samples // parts
    return [_slice(batch, part * size, part * size + size, samples) for part in range(parts)]


def tensors_in(batch: Batch) -> Iterator[Any]:
    """Every tensor of a batch, in order."""
    if is_tensor(batch):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from tensors_in(value)


def _slice(batch: Batch, start: int, stop: int, samples: int) -> Batch:
    """Samples ``start:stop`` of a batch. A list without tensors that is as long as the batch (texts, ids) is sliced
    too."""
    if is_tensor(batch):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {key: _slice(value, start, stop, samples) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        if not any(True for _ in tensors_in(batch)):
            return batch[start:stop] if len(batch) == samples else batch
        values = [_slice(value, start, stop, samples) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
