"""Samplers that give each replica samples of its own, such as torch's ``DistributedSampler``."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DistributedSampler

from workbench.errors import ConfigError


def is_distributed(sampler: Any) -> bool:
    """Whether a sampler gives each replica samples of its own."""
    return isinstance(sampler, DistributedSampler) or (hasattr(sampler, "rank") and hasattr(sampler, "num_replicas"))


def check_sampler(sampler: Any, dp: int, dp_size: int) -> None:
    """Raise ``ConfigError`` for a sampler that is not of replica ``dp`` of ``dp_size``."""
    if (sampler.rank, sampler.num_replicas) != (dp, dp_size):
        raise ConfigError(
            f"the dataloader's DistributedSampler is for replica {sampler.rank} of {sampler.num_replicas}, but this "
            f"rank is data-parallel replica {dp} of {dp_size}: leave the sampler out (the workbench then divides the "
            f"batches), or pass num_replicas={dp_size} and rank=<the replica of each rank>",
            field="dataloader",
        )


def remark_on_repeats(sampler: Any) -> str:
    """What to tell of a ``DistributedSampler`` that repeats samples, so that replicas have equally many; else ""."""
    if not isinstance(sampler, DistributedSampler):
        return ""
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    repeated = sampler.total_size - samples
    if repeated <= 0:
        return ""
    return (
        f"the DistributedSampler repeats {repeated} of {samples} samples in each epoch, as {sampler.num_replicas} "
        "replicas do not divide them: leave the sampler out (the workbench then divides the batches), or use "
        "drop_last=True"
    )
