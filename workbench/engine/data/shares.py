"""What sources of batches have in common: shares of replicas, marks at the ends of epochs, skipping.

Every source gives the same samples in the same order whatever the number of replicas: the shares of replicas
0 .. dp_size-1, concatenated, are the global batch that a single process would see. Data are read under random
generators of their own (``DataGenerators``), so random augmentation too is the same for any number of replicas.
"""

from __future__ import annotations

from collections.abc import Iterator

from workbench.engine.base.batch import Batch
from workbench.engine.base.workload import EPOCH_END, EpochEnd
from workbench.errors import ConfigError


def without_marks(stream: Iterator[Batch | EpochEnd]) -> Iterator[Batch]:
    """The batches of a stream that also marks the ends of epochs."""
    return (item for item in stream if item is not EPOCH_END)


def skip(stream: Iterator[Batch | EpochEnd], number: int) -> Iterator[Batch | EpochEnd]:
    """Read and drop the first ``number`` batches now, so that reading them draws its random numbers before the caller
    restores the state of the generators."""
    while number > 0:
        number -= next(stream) is not EPOCH_END
    return stream


def share_of(samples: int, dp: int, dp_size: int) -> tuple[int, int]:
    """The first sample of replica ``dp``'s share of a batch, and the one after its last."""
    return samples * dp // dp_size, samples * (dp + 1) // dp_size


def share_size(batch_size: int, dp_size: int) -> int:
    """How many samples of a batch each replica takes; ``ConfigError`` where it cannot be divided."""
    if batch_size % dp_size:
        raise ConfigError(
            f"--batch-size {batch_size} cannot be divided among {dp_size} data-parallel replicas: "
            f"use {max(1, round(batch_size / dp_size)) * dp_size}",
            field="--batch-size",
        )
    return batch_size // dp_size


def raise_for_empty_epoch(epoch: int, samples: int, batch_size: int) -> None:
    """Raise the ``ConfigError`` for an epoch without a full batch. ``samples``: size of its incomplete batch."""
    if epoch:
        raise ConfigError(
            f"the data ended after {epoch} epoch{'s' if epoch > 1 else ''} and returns nothing when iterated again: "
            "pass an object whose __iter__ starts from the beginning (not a generator), or train for fewer --steps "
            "or --epochs",
            field="dataset",
        )
    what = f"only {samples} samples, fewer than one batch of {batch_size}" if samples else "no samples"
    raise ConfigError(f"the data gave {what}: use a smaller batch size, or more data", field="dataset")
