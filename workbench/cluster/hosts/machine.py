"""Describes this host: CPU cores, cgroup limits, GPUs and TCP ports. Reads GPUs through NVML and never initialises
CUDA."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any

import psutil

from workbench.cluster.base.ports import reserve
from workbench.cluster.hosts.placement import Device, Host, visible_devices
from workbench.errors import ClusterError

_CGROUP = Path("/sys/fs/cgroup")


def describe_host() -> Host:
    """Returns the cores, CPU limit and GPUs that this process may use. GPUs are those in CUDA_VISIBLE_DEVICES, if it
    is set."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Host(
        cores=cores,
        physical_cores=min(psutil.cpu_count(logical=False) or len(cores), len(cores)),
        cpu_limit=_cpu_limit(),
        devices=visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus()),
    )


def visible_device_ids() -> list[str]:
    """Returns the CUDA_VISIBLE_DEVICES entries of the GPUs that this process may use; empty without GPUs."""
    return [device.id for device in visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus())]


@functools.cache
def _nvml() -> Any:
    """Returns the initialised NVML module, or None when pynvml or the NVIDIA driver is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _gpus() -> list[Device]:
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return []
    return [device for index in range(count) if (device := _gpu(nvml, index)) is not None]


def _gpu(nvml: Any, index: int) -> Device | None:
    """Describes one GPU. Returns None when NVML reports an error for it, for example because it fell off the bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(handle)
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        return None
    return Device(
        id=str(index),
        name=name if isinstance(name, str) else name.decode(),
        memory_bytes=memory,
        used_by=_find_other_processes(nvml, handle),
    )


def _find_other_processes(nvml: Any, handle: Any) -> tuple[int, ...]:
    """Returns the pids of processes that compute on a GPU, other than this process and its descendants."""
    try:
        pids = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except nvml.NVMLError:
        return ()
    ours = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return tuple(sorted(pids - ours))


def _cpu_limit() -> float | None:
    """Returns the CPU limit of the cgroup in cores (v2: ``cpu.max``; v1: quota and period), or None when unlimited."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (_CGROUP / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)


def reserve_master_port(address: str, port: int | None) -> socket.socket:
    """Reserves a TCP port as MASTER_PORT of the ranks (see ``ports.reserve``). ``port``: None for a free port.

    Raises ``ClusterError`` when ``port`` is not a port number or cannot be bound.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ClusterError(
            f"--master-port {port} is not a port number: use 1024 to 65535, or omit the flag to use a free port"
        )
    try:
        return reserve(address, port or 0)
    except OSError as error:
        raise ClusterError(
            f"--master-port {port} on {address} cannot be used ({error.strerror}){_describe_listener(port)}: "
            "pass another port, or omit the flag to use a free port"
        ) from error


def _describe_listener(port: int | None) -> str:
    """Returns ", used by process 123 (python)" for the process that listens on a port, or "" if it is unknown."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return ""
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            if connection.pid is None:
                return ""
            return f", used by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
