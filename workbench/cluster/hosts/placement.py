"""Assigns devices and cores of a host to ranks.

Pure functions of a ``Host``, which ``machine.describe_host`` creates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.core.visible_devices import entries, is_uuid
from workbench.errors import ConfigError, format_ranks

CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU.

    ``id``: its entry in CUDA_VISIBLE_DEVICES. ``used_by``: pids of other processes that compute on it.
    """

    id: str
    name: str = "GPU"
    memory_bytes: int = 0
    used_by: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Host:
    """The cores and GPUs of a host that this process may use.

    ``cores``: numbers of the logical CPUs. ``physical_cores``: the number of physical cores. ``cpu_limit``: CPU time
    limit of the cgroup, in cores (None: no limit). ``devices``: the GPUs that CUDA_VISIBLE_DEVICES leaves visible.
    """

    cores: tuple[int, ...]
    physical_cores: int
    cpu_limit: float | None = None
    devices: tuple[Device, ...] = ()

    @property
    def usable_cores(self) -> int:
        """The number of cores that can be used in full: the logical CPUs, limited by ``cpu_limit``; at least 1."""
        limit = len(self.cores) if self.cpu_limit is None else int(self.cpu_limit)
        return max(1, min(len(self.cores), limit))


@dataclass(frozen=True, kw_only=True)
class Binding:
    """The device and cores of one rank.

    ``device``: a CUDA_VISIBLE_DEVICES entry or ``"cpu"``. ``cores``: the logical CPUs that the rank is pinned to
    (empty: not pinned). ``threads``: the value of OMP_NUM_THREADS.
    """

    rank: int
    local_rank: int
    device: str
    cores: tuple[int, ...]
    threads: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The bindings of all ranks, and warnings for the user about them."""

    bindings: tuple[Binding, ...]
    warnings: tuple[str, ...] = ()


def visible_devices(setting: str | None, present: Sequence[Device]) -> tuple[Device, ...]:
    """Returns the devices that a value of CUDA_VISIBLE_DEVICES (None: unset) makes visible, in its order.

    As in CUDA, the first entry that matches no device ends the list. Entries that are UUIDs are kept unchanged and not
    checked.
    """
    chosen = entries(setting)
    if chosen is None:
        return tuple(present)
    by_id = {device.id: device for device in present}
    visible: list[Device] = []
    for entry in chosen:
        device = Device(id=entry) if is_uuid(entry) else by_id.get(str(int(entry)))
        if device is None:
            break
        visible.append(dataclasses.replace(device, id=entry))
    return tuple(visible)


def default_ranks(host: Host) -> int:
    """Returns the default number of ranks: one per GPU; without GPUs one per physical core, at least 2, at most 4."""
    if host.devices:
        return len(host.devices)
    return max(2, min(4, host.physical_cores, host.usable_cores))


def choose_devices(host: Host, wanted: Sequence[str] | str | None) -> tuple[Device, ...]:
    """Returns the devices to bind ranks to.

    ``wanted``: None for all, ``"cpu"`` for none, or the ids of devices. Raises ``ConfigError`` for an unknown id.
    """
    if wanted is None:
        return host.devices
    if wanted == CPU:
        return ()
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    known = {device.id: device for device in host.devices}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"unknown device {', '.join(unknown)}: the visible devices are {', '.join(known) or 'none'}; "
            "choose among these, or set CUDA_VISIBLE_DEVICES before the kernel starts",
            field="devices",
        )
    return tuple(known[name] for name in names)


def place(n: int, host: Host, devices: Sequence[Device] | None = None) -> Placement:
    """Binds each of ``n`` ranks to a device and to an equal share of the host's cores.

    ``devices``: the devices to use (default: those of the host); empty: none, the ranks compute on the CPU. Raises
    ``ConfigError`` when ``n`` is less than 1 or exceeds the number of devices.
    """
    if n < 1:
        raise ConfigError(f"-n {n}: at least one rank is required, pass -n 1 or more", field="--nproc-per-node")
    chosen = host.devices if devices is None else tuple(devices)
    if chosen and n > len(chosen):
        gpus = "1 GPU is" if len(chosen) == 1 else f"{len(chosen)} GPUs are"
        ids = ", ".join(device.id for device in chosen)
        raise ConfigError(
            f"{n} ranks, but {gpus} available ({ids}), and NCCL allows one rank per device: pass "
            f"-n {len(chosen)}, or run the ranks on CPU cores (%dist_up -n {n} --devices cpu, "
            'Session.up(..., devices="cpu"), or an empty CUDA_VISIBLE_DEVICES)',
            field="--nproc-per-node",
        )
    shares = _share_cores(n, host)
    bindings = tuple(
        Binding(
            rank=rank,
            local_rank=rank,
            device=chosen[rank].id if chosen else CPU,
            cores=shares[rank],
            threads=len(shares[rank]) or max(1, host.usable_cores // n),
        )
        for rank in range(n)
    )
    return Placement(bindings=bindings, warnings=tuple(_collect_warnings(n, host, chosen)))


def _share_cores(n: int, host: Host) -> list[tuple[int, ...]]:
    """Divides the cores into equal contiguous shares.

    All shares are empty (ranks are not pinned) when there are fewer cores than ranks, or when a cgroup limits CPU time
    below the number of cores.
    """
    count = len(host.cores)
    if n > count or host.usable_cores < count:
        return [()] * n
    return [host.cores[rank * count // n : (rank + 1) * count // n] for rank in range(n)]


def _collect_warnings(n: int, host: Host, chosen: Sequence[Device]) -> list[str]:
    warnings: list[str] = []
    for rank, device in enumerate(chosen[:n]):
        if device.used_by:
            pids = ", ".join(map(str, device.used_by))
            warnings.append(
                f"device {device.id} ({device.name}) is also used by process {pids}: rank {rank} shares the memory and "
                "compute time of the device with it"
            )
    if not chosen and n > host.usable_cores:
        warnings.append(
            f"{n} ranks on {host.usable_cores} core{'s' if host.usable_cores != 1 else ''}: the ranks share cores "
            f"and are not pinned, with one thread each; steps are slower than with -n {host.usable_cores}"
        )
    return warnings


def rank_environment(binding: Binding, *, world_size: int, master_addr: str, master_port: int) -> dict[str, str]:
    """Returns the environment variables of a rank: those of torchrun, the number of threads, and its device."""
    threads = str(binding.threads)
    return {
        "RANK": str(binding.rank),
        "LOCAL_RANK": str(binding.local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": "" if binding.device == CPU else binding.device,
    }


def parse_ranks(text: str, n: int) -> list[int]:
    """Parses a list of ranks: ``"0,2"``, ``"0-3"``, ``"1,4-6"`` or ``"all"``. Returns them in ascending order.

    Raises ``ConfigError`` when the text is not a list of ranks, or a rank is not in ``0 .. n - 1``.
    """
    if text.strip().lower() == "all":
        return list(range(n))
    ranks: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(
                f"-t {text!r} is not a list of ranks: pass for example -t 0,2 or -t 0-{n - 1} or -t all",
                field="--targets",
            )
        ranks.update(range(int(first), int(last if dash else first) + 1))
    outside = sorted(rank for rank in ranks if rank >= n)
    if outside:
        raise ConfigError(
            f"{format_ranks(outside)} in -t {text!r}, but {n} ranks are up: use ranks 0 to {n - 1}", field="--targets"
        )
    return sorted(ranks)
