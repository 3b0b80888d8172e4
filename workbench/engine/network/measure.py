"""Measures the emulated network before a training: what was asked beside what its collectives take."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from workbench.core.network import Network, messages
from workbench.core.records import EventKind
from workbench.rundir.log import RankLogWriter

_KIND = "all_reduce"
_SMALL_BYTES = 4
_REPEATS = 3
#: how long the large message is to take, and its size at least and at most
_LARGE_S = 0.25
_LEAST_BYTES, _MOST_BYTES = 2**12, 2**24


def log_network(log: RankLogWriter, network: Network | None) -> None:
    """Log, on rank 0, rate and latency as ``--network`` asks for them, and as all-reduces over all ranks have them;
    None: nothing is emulated, and nothing logged. Collective."""
    if network is None:
        return
    value = measured(network)
    if log.rank == 0:
        log.event(EventKind.PEAK, "network", value)


def measured(network: Network) -> dict[str, Any]:
    """What ``log_network`` logs. Collective."""
    ranks = dist.get_world_size()
    slowed = network.slowed(range(ranks))
    _, share = messages(_KIND, ranks, 1.0)
    wanted = _LARGE_S * network.bits_per_s / 8 / slowed / share
    large = int(min(max(wanted, _LEAST_BYTES), _MOST_BYTES)) // 4 * 4
    _reduce(_SMALL_BYTES)  # connections are made
    small_s = statistics.median(_reduce(_SMALL_BYTES) for _ in range(_REPEATS))
    large_s = statistics.median(_reduce(large) for _ in range(_REPEATS))
    rounds, sent = messages(_KIND, ranks, large)
    return {
        "network": network.text,
        "asked_bits_per_s": network.bits_per_s / slowed,
        "asked_latency_s": network.latency_s * slowed,
        "bits_per_s": 8 * sent / max(large_s - small_s, 1e-9),
        "latency_s": small_s / rounds,
    }


def _reduce(bytes_: int) -> float:
    """The seconds of an all-reduce of so many bytes, begun by all ranks together."""
    tensor = torch.zeros(bytes_ // 4)
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(tensor)
    return time.perf_counter() - began
