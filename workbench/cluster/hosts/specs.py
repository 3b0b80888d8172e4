"""From a wish (how many ranks, on which devices) to what a rank server is told, on this host."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from workbench.cluster.base.protocol import RankSpec
from workbench.cluster.base.rank_kind import RankKind
from workbench.cluster.hosts.machine import describe_host
from workbench.cluster.hosts.placement import Placement, choose_devices, default_ranks, environment, place

#: ranks of one host meet on the loopback interface
MASTER_ADDR = "127.0.0.1"


def plan_ranks(n: int | None, devices: Sequence[str] | str | None = None) -> Placement:
    """Where ``n`` ranks (None: a fitting number) go; ``devices`` as in ``Session.up``."""
    host = describe_host()
    host = dataclasses.replace(host, devices=choose_devices(host, devices))
    return place(default_ranks(host) if n is None else n, host)


def rank_specs(
    placement: Placement,
    kind: RankKind,
    *,
    master_port: int,
    profile_dir: Path,
    connection: str,
    first_rank: int = 0,
    extra_environment: dict[str, str] | None = None,
) -> list[RankSpec]:
    """What the rank server is told. ``first_rank``: engine id of the first (RANK still counts from 0)."""
    world_size = len(placement.bindings)
    return [
        RankSpec(
            rank=first_rank + binding.rank,
            device=binding.device,
            cores=list(binding.cores),
            environment={
                **(extra_environment or {}),
                **environment(binding, world_size=world_size, master_addr=MASTER_ADDR, master_port=master_port),
            },
            profile_dir=str(profile_dir),
            work_dir=os.getcwd(),
            connection=connection,
            preload=kind.preload,
            python=kind.python,
        )
        for binding in placement.bindings
    ]
