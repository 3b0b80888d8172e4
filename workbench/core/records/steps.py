"""What a step did on a rank: its numbers, phases and collectives, what it logged, and the resources it used."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step as one rank saw it.

    ``loss`` is this rank's part of the loss: the mean over replicas is the loss of the global batch. Where all shares
    hold as many labels or samples, it is the mean over the share. NaN where the rank has none (a pipeline stage that is
    not the last). ``grad_sq`` is this rank's share of the squared L2 norm of the reduced gradient before clipping:
    the sum over all ranks is the squared global norm (each parameter element counted once). ``tokens`` is how many
    tokens (samples, where a model has no tokens) this rank's data-parallel replica consumed. ``skipped`` marks a step
    that the loss scaler dropped or that held a non-finite number. ``loss_scale`` is the fp16 scale in force (1 without
    one), ``clip`` the largest global norm in force (0: none), ``framework_norm`` the global norm that the framework
    itself computed (NaN where it computes none), ``monitor_ms`` what watching this step cost on this rank.
    """

    time: float
    step: int
    rank: int
    loss: float
    lr: float
    grad_sq: float
    tokens: int
    step_time_ms: float
    data_wait_ms: float
    skipped: bool = False
    loss_scale: float = 1.0
    clip: float = 0.0
    framework_norm: float = math.nan
    monitor_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """What a rank used at one moment. GPU columns are NaN without a GPU, and ``device`` says "cpu".

    ``cpu_percent`` is of one core (two busy threads: 200). Byte counters of network and disk are the host's network
    and this process' disk traffic since the rank started, so are ``gc_collections`` and ``gc_ms`` (pauses of Python's
    garbage collector). ``gpu_allocated_bytes``, ``gpu_reserved_bytes`` and ``gpu_peak_bytes`` are of torch's caching
    allocator, ``gpu_memory_bytes`` of the whole device. ``gpu_throttle`` is NVML's bit mask of the reasons why clocks
    are held down. PCIe figures are rates (bytes per second), NVLink figures counters since the rank started.
    """

    time: float
    rank: int
    step: int
    phase: str
    cpu_percent: float
    rss_bytes: int
    threads: int
    net_sent_bytes: int
    net_received_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    device: str
    gpu_percent: float = math.nan
    gpu_memory_bytes: float = math.nan
    gpu_power_watts: float = math.nan
    shared_bytes: int = 0
    gc_collections: int = 0
    gc_ms: float = 0.0
    gpu_allocated_bytes: float = math.nan
    gpu_reserved_bytes: float = math.nan
    gpu_peak_bytes: float = math.nan
    gpu_temperature_c: float = math.nan
    gpu_clock_mhz: float = math.nan
    gpu_memory_clock_mhz: float = math.nan
    gpu_throttle: int = 0
    gpu_pcie_sent_bytes_per_s: float = math.nan
    gpu_pcie_received_bytes_per_s: float = math.nan
    gpu_nvlink_sent_bytes: float = math.nan
    gpu_nvlink_received_bytes: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """One phase of one step on one rank. ``start_ms`` counts from the beginning of the step on that rank.

    ``phase``: data, transfer (host to device), forward, backward, communication (exposed: compute waits for it),
    overlapped (communication that hides behind compute), optimizer, bubble (a pipeline stage waits), evaluate,
    checkpoint, paused, monitor. ``micro_batch`` counts from 0, -1 where the phase is of the whole step. A phase that is
    entered several times is one row, the start of the first and the duration of all; what waits (communication, bubble)
    is one per phase of work that it interrupts or follows. The timeline draws waiting within a phase after its work.
    """

    step: int
    rank: int
    phase: str
    micro_batch: int
    start_ms: float
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveRecord:
    """One collective, or one message between two ranks, as one rank saw it.

    ``kind``: all_reduce, reduce_scatter, all_gather, all_to_all, broadcast, send, recv, barrier ... ``group`` names the
    mesh axes it runs over ("dp", "tp", "pp", "cp", "world"), ``group_size`` its ranks. ``bytes``: the size of this
    rank's input (of its output for all_gather), as nccl-tests counts. ``duration_ms`` from its call until it was
    complete; ``exposed_ms`` of it the rank waited, ``post_ms`` of it the rank itself needed to hand it to the backend
    (NaN where that is not known). ``start_ms`` counts from the beginning of the step.
    """

    step: int
    rank: int
    kind: str
    group: str
    group_size: int
    bytes: int
    start_ms: float
    duration_ms: float
    exposed_ms: float
    post_ms: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRecord:
    """What the training script logged under one name in one step on one rank: ``log(name, value, reduce=...)``.

    ``value`` sums up the ``count`` calls of this step on this rank: their sum for ``reduce`` "sum", the largest for
    "max", the smallest for "min", their mean for "mean" and "none" (ranks are not combined). ``name`` begins with
    "eval/" where it was logged during the evaluation of that step. ``telemetry.logged.curves`` combines ranks.
    """

    step: int
    rank: int
    name: str
    reduce: str
    value: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRecord:
    """An image or a text that the training script logged: ``log.image`` and ``log.text``.

    ``kind``: "image" (``file``: a PNG, its path relative to the run directory; ``width`` and ``height`` in pixels) or
    "text" (``text``). ``name`` as in ``ValueRecord``. Of many images of one name some files are removed again.
    """

    step: int
    rank: int
    name: str
    kind: str
    text: str = ""
    file: str = ""
    width: int = 0
    height: int = 0
