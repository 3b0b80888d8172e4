"""Joining and leaving the default process group, as often as wanted in one process.

Rank 0 lets the system choose a port and tells the others through a small file in the run directory: no port has to be
free beforehand, and two runs on one host can't meet.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import torch.distributed as dist

from workbench.engine.collectives import flight
from workbench.errors import ClusterError, ConfigError

RENDEZVOUS_FILE = "rendezvous.json"
#: seconds after which torch itself ends a collective that a rank does not come to: a week, since a rank may stand in
#: the debugger. A training whose ranks wait in vain is ended by the session (``workbench.run.peer_watch``)
LIMIT_S = 7 * 24 * 3600.0
#: most seconds between looks whether all ranks are there
_ASK_AT_LEAST_EVERY_S = 0.05


@contextmanager
def joined(
    rank: int,
    world_size: int,
    rendezvous_dir: str | Path,
    *,
    backend: str,
    master_addr: str = "127.0.0.1",
    master_port: int = 0,
    token: str = "",
    join_timeout_s: float = 60.0,
    collective_timeout_s: float = LIMIT_S,
) -> Iterator[None]:
    """While entered, this process is rank ``rank`` of ``world_size`` in torch's default group over ``backend``.

    ``rendezvous_dir`` is a directory that all ranks see and that is used for one group only, or each group has its
    own ``token`` (the same on all ranks). ``master_addr`` is where rank 0 listens; ``master_port`` 0: the system
    chooses. A group that the process is in is left first. Leaving, also by an error, destroys every group; it never
    waits for peers. Raises ``ClusterError`` when peers don't come within ``join_timeout_s``, or the port is taken,
    and ``ConfigError`` for settings of the environment with which ranks cannot meet or would be killed.
    """
    _check_environment(backend)
    leave()
    path = Path(rendezvous_dir) / (f"rendezvous-{token}.json" if token else RENDEZVOUS_FILE)
    deadline = time.monotonic() + join_timeout_s
    try:
        store = _meet(rank, path, addr=master_addr, port=master_port, timeout_s=join_timeout_s)
        _await_peers(store, rank, world_size, timeout_s=join_timeout_s, deadline=deadline)
        flight.begin()
        dist.init_process_group(
            backend=backend,
            store=dist.PrefixStore("workbench", store),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=collective_timeout_s),
        )
        yield
    finally:
        if rank == 0:
            path.unlink(missing_ok=True)
        leave()


def _check_environment(backend: str) -> None:
    if dist.get_debug_level() == dist.DebugLevel.DETAIL:
        raise ConfigError(
            "TORCH_DISTRIBUTED_DEBUG=DETAIL ends ranks while they train: unset it or set it to INFO, "
            "then start the ranks again (%dist_down, %dist_up)"
        )
    names = os.environ.get("GLOO_SOCKET_IFNAME", "") if backend == "gloo" else ""
    known = [name for _, name in socket.if_nameindex()]
    unknown = [name for name in names.split(",") if name and name not in known]
    if unknown:
        raise ConfigError(
            f"GLOO_SOCKET_IFNAME names {', '.join(unknown)}, which this host does not have (it has {', '.join(known)})"
            ": unset it or name one of these, then start the ranks again (%dist_down, %dist_up)"
        )
    without = [name for name in names.split(",") if name and not _has_address(name)]
    if without:
        usable = ", ".join(name for name in known if _has_address(name))
        raise ConfigError(
            f"GLOO_SOCKET_IFNAME names {', '.join(without)}, which has no address, so ranks cannot meet over it: unset "
            f"it or name one that has (of {usable}), then start the ranks again (%dist_down, %dist_up)"
        )


def _has_address(interface: str) -> bool:
    families = (socket.AF_INET, socket.AF_INET6)
    return any(address.family in families for address in psutil.net_if_addrs().get(interface, ()))


def _meet(rank: int, path: Path, *, addr: str, port: int, timeout_s: float) -> dist.TCPStore:
    """The store that rank 0 serves, and whose place it writes to ``path``."""
    timeout = timedelta(seconds=timeout_s)
    if rank == 0:
        try:
            store = dist.TCPStore(addr, port, is_master=True, timeout=timeout, wait_for_workers=False)
        except dist.DistNetworkError as error:
            raise ClusterError(
                f"rank 0 cannot listen on {addr}:{port}: {error}. Free the port, or leave it to the system (port 0)"
            ) from error
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"addr": addr, "port": store.port}))
        temporary.rename(path)
        return store
    addr, port = _read_rendezvous(path, rank, timeout_s)
    try:
        return dist.TCPStore(addr, port, is_master=False, timeout=timeout, wait_for_workers=False)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise ClusterError(f"rank {rank} cannot reach rank 0 at {addr}:{port} ({path}): {error}") from error


def _read_rendezvous(path: Path, rank: int, timeout_s: float) -> tuple[str, int]:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = json.loads(path.read_text())
            return found["addr"], found["port"]
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"rank {rank} waited {timeout_s:g} s for rank 0 to write {path}: rank 0 did not start. "
                    "See the log of rank 0, then start again"
                ) from None
            time.sleep(0.005)


def _await_peers(store: dist.TCPStore, rank: int, world_size: int, *, timeout_s: float, deadline: float) -> None:
    """Wait until every rank is at the store: a missing one is named here, not at some later collective.

    Asked again and again instead of waiting in the library, which an interrupt could not break.
    """
    store.set(f"here/{rank}", "1")
    keys = [f"here/{peer}" for peer in range(world_size)]
    pause, lost = 0.001, None
    while lost is None and time.monotonic() < deadline:
        try:
            if store.check(keys):
                return
        except (RuntimeError, dist.DistError) as error:  # rank 0 left, and the store with it
            lost = error
        time.sleep(pause)
        pause = min(2 * pause, _ASK_AT_LEAST_EVERY_S)
    missing = [str(peer) for peer, key in enumerate(keys) if not _present(store, key)]
    raise ClusterError(
        f"rank {rank} waited {'' if lost else f'{timeout_s:g} s '}for rank(s) {', '.join(missing) or '?'} of "
        f"{world_size}: not all ranks started the run"
    ) from lost


def _present(store: dist.TCPStore, key: str) -> bool:
    try:
        return bool(store.check([key]))
    except (RuntimeError, dist.DistError):  # rank 0 left, and the store with it: nobody can be asked
        return False


#: the groups that this process has left in the block of ``outlived``, while it runs
_left: list[list[dist.ProcessGroup]] = []


@contextmanager
def outlived() -> Iterator[None]:
    """Groups that are left in this block end with the block, after all that uses them.

    A failed training's frames hold DDP's reducer. Were its reference to a group the last one, the group would end in a
    garbage collection, while this thread has the interpreter lock, and wait for a gloo thread that waits for the lock.
    Groups whose last reference is one of Python's end without the lock.
    """
    _left.append([])
    try:
        yield
    finally:
        gc.collect()
        _left.pop()


def leave() -> None:
    """Leave every group that this process is in; waits for no peer."""
    if dist.is_initialized():
        groups = list(dist.distributed_c10d._world.pg_map)  # held until their users are collected: see ``outlived``
        for held in _left[-1:]:
            held.extend(groups)
        # A peer that died leaves broken connections behind; what destroying says about them is of no use to anybody.
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()
        gc.collect()
        del groups
