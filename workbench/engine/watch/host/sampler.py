"""Samples the resources that a rank uses, in a thread: CPU, memory, network, disk, and its GPU if it has one.

This module does not import torch. One sample takes less than a millisecond of one core.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import psutil

from workbench.core import background
from workbench.core.live import rank_row
from workbench.core.records import DeviceSample, EventKind
from workbench.engine.watch.host.gpu_reader import GpuReader, GpuReading, GpuUnavailableError, NvmlGpu
from workbench.rundir.log import RankLogWriter

#: the kernel counts CPU time in ticks of 10 ms, so CPU usage over a shorter time than this is meaningless
FIRST_SAMPLE_S = 0.1
#: longest time between two samples, whatever they cost
MOST_PERIOD_S = 2.0


class Progress:
    """Shared between the trainer and the sampler's thread; assigning an attribute is atomic.

    The trainer sets ``step`` and ``phase``, which also stand in the row of this rank (``core.live.rank_row``). The
    sampler sets ``sampling_s``, the CPU seconds that it has used so far, and what evaluates alerts ``alerting_s``,
    likewise.
    """

    __slots__ = ("_phase", "_row", "_step", "alerting_s", "sampling_s")

    def __init__(self) -> None:
        self._row = rank_row.current()
        if self._row is not None:
            self._row.begin_run()
        self._step = 0
        self.phase = "starting"
        self.sampling_s = 0.0
        self.alerting_s = 0.0

    @property
    def step(self) -> int:
        """The step that the rank is in, or has finished last."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = step
        if self._row is not None:
            self._row.begin_step(step)

    @property
    def phase(self) -> str:
        """The part of the training that the rank is in."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase
        if self._row is not None:
            self._row.enter(phase)

    @property
    def threads_s(self) -> float:
        """CPU seconds of all threads that watch beside the training."""
        return self.sampling_s + self.alerting_s


@dataclass(frozen=True, slots=True)
class _Counters:
    """Byte counters of the host's network and of this process's disk traffic; zeros where the system has none."""

    net_sent: int
    net_received: int
    disk_read: int
    disk_write: int

    @classmethod
    def read(cls, process: psutil.Process) -> _Counters:
        net = psutil.net_io_counters()
        disk = process.io_counters() if hasattr(process, "io_counters") else None
        return cls(
            net_sent=net.bytes_sent if net else 0,
            net_received=net.bytes_recv if net else 0,
            disk_read=disk.read_bytes if disk else 0,
            disk_write=disk.write_bytes if disk else 0,
        )


class GarbageCollections:
    """Counts the runs of Python's garbage collector (``count``) and the milliseconds that they took (``ms``)."""

    def __init__(self) -> None:
        self.count = 0
        self.ms = 0.0
        self._began = 0.0

    def start(self) -> None:
        """Start counting."""
        gc.callbacks.append(self._on_collection)

    def stop(self) -> None:
        """Stop counting; may be called without ``start``."""
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began:
            self.count += 1
            self.ms += (time.perf_counter() - self._began) * 1e3


def read_allocator_memory() -> tuple[float, float, float]:
    """Bytes of torch's caching allocator: allocated now, reserved now, allocated at peak.

    NaN when this process has not initialised CUDA; reading them would initialise it.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return math.nan, math.nan, math.nan
    try:
        memory = torch.cuda.memory_stats()
    except RuntimeError:  # the device is lost; NVML or the training itself reports that
        return math.nan, math.nan, math.nan
    names = ("allocated_bytes.all.current", "reserved_bytes.all.current", "allocated_bytes.all.peak")
    allocated, reserved, peak = (float(memory.get(name, math.nan)) for name in names)
    return allocated, reserved, peak


class DeviceSampler:
    """Appends a ``DeviceSample`` to ``log`` ``hz`` times per second, from ``start()`` to ``stop()``.

    ``device``: torch's name of the rank's device ("cpu", "cuda", "cuda:1"). ``gpu``: reads it (default: NVML). A GPU
    that cannot be found is logged as the event ``warning gpu_unavailable``, one that stops answering as ``gpu lost``;
    from then on the GPU's columns are NaN. With ``share`` samples are rarer, every ``MOST_PERIOD_S`` at the
    least, where they would otherwise take more than this share of a processor.
    """

    def __init__(
        self,
        log: RankLogWriter,
        *,
        rank: int,
        hz: float,
        device: str,
        progress: Progress,
        gpu: GpuReader | None = None,
        share: float = 1.0,
    ) -> None:
        self.log = log
        self.rank = rank
        self.period_s = 1 / hz
        self._share = share
        self.device = device
        self.progress = progress
        self.samples = 0
        self._gpu = gpu
        self._collections = GarbageCollections()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start sampling in a daemon thread; the first sample is taken after at most ``FIRST_SAMPLE_S`` seconds."""
        self._stopping.clear()
        self._thread = background.thread(self._run, name=f"device-sampler-{self.rank}", failed=self._tell_end)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it; may be called twice, or without ``start``."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> DeviceSampler:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        self._open_gpu()
        self._collections.start()
        try:
            self._sample_until_stopped()
        finally:
            self._collections.stop()
            self._close_gpu()

    def _tell_end(self, error: BaseException) -> None:
        """No file descriptors left, no /proc, a reader's own fault: training continues unsampled."""
        self.log.event(EventKind.WARNING, "device_sampler_ended", background.described(error), step=self.progress.step)

    def _sample_until_stopped(self) -> None:
        process = psutil.Process(os.getpid())
        process.cpu_percent()  # the first call only starts the interval
        first = _Counters.read(process)
        due = time.monotonic() + min(FIRST_SAMPLE_S, self.period_s)
        self._stopping.wait(due - time.monotonic())
        while not self._stopping.is_set():
            self.log.append(self._sample(process, first))
            self.samples += 1
            before, self.progress.sampling_s = self.progress.sampling_s, time.thread_time()
            costs_s = (self.progress.sampling_s - before) / self._share
            due = max(due + max(self.period_s, min(costs_s, MOST_PERIOD_S)), time.monotonic())
            self._stopping.wait(due - time.monotonic())

    def _sample(self, process: psutil.Process, first: _Counters) -> DeviceSample:
        with process.oneshot():
            counters = _Counters.read(process)
            cpu_percent, memory, threads = process.cpu_percent(), process.memory_info(), process.num_threads()
        gpu = self._read_gpu()
        allocated, reserved, peak = read_allocator_memory()
        return DeviceSample(
            time=time.time(),
            rank=self.rank,
            step=self.progress.step,
            phase=self.progress.phase,
            cpu_percent=cpu_percent,
            rss_bytes=memory.rss,
            threads=threads,
            net_sent_bytes=counters.net_sent - first.net_sent,
            net_received_bytes=counters.net_received - first.net_received,
            disk_read_bytes=counters.disk_read - first.disk_read,
            disk_write_bytes=counters.disk_write - first.disk_write,
            device=self.device,
            gpu_percent=gpu.percent,
            gpu_memory_bytes=gpu.memory_bytes,
            gpu_power_watts=gpu.power_watts,
            shared_bytes=getattr(memory, "shared", 0),
            gc_collections=self._collections.count,
            gc_ms=self._collections.ms,
            gpu_allocated_bytes=allocated,
            gpu_reserved_bytes=reserved,
            gpu_peak_bytes=peak,
            gpu_temperature_c=gpu.temperature_c,
            gpu_clock_mhz=gpu.clock_mhz,
            gpu_memory_clock_mhz=gpu.memory_clock_mhz,
            gpu_throttle=gpu.throttle,
            gpu_pcie_sent_bytes_per_s=gpu.pcie_sent_bytes_per_s,
            gpu_pcie_received_bytes_per_s=gpu.pcie_received_bytes_per_s,
            gpu_nvlink_sent_bytes=gpu.nvlink_sent_bytes,
            gpu_nvlink_received_bytes=gpu.nvlink_received_bytes,
        )

    def _open_gpu(self) -> None:
        try:
            if self._gpu is None and self.device.startswith("cuda"):
                self._gpu = NvmlGpu.open(self.device, os.environ)
        except GpuUnavailableError as error:
            self._warn(error)
        if self._gpu is not None:
            self.device = self._gpu.name

    def _read_gpu(self) -> GpuReading:
        if self._gpu is None:
            return GpuReading()
        try:
            return self._gpu.read()
        except GpuUnavailableError as error:
            self.log.event(EventKind.GPU, "lost", str(error), step=self.progress.step)
            self._gpu = None
            return GpuReading()

    def _close_gpu(self) -> None:
        gpu, self._gpu = self._gpu, None
        if gpu is None:
            return
        try:
            gpu.close()
        except GpuUnavailableError as error:
            self._warn(error)

    def _warn(self, error: GpuUnavailableError) -> None:
        self.log.event(EventKind.WARNING, "gpu_unavailable", str(error), step=self.progress.step)
