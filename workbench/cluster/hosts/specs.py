"""Places ranks on this host and creates the specs that a rank server starts them from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from workbench.cluster.base.protocol import RankSpec
from workbench.cluster.base.rank_kind import RankKind
from workbench.cluster.hosts.machine import describe_host
from workbench.cluster.hosts.placement import Placement, choose_devices, default_ranks, place, rank_environment

#: all ranks are on this host, so they connect through the loopback interface
MASTER_ADDR = "127.0.0.1"


def plan_ranks(n: int | None, devices: Sequence[str] | str | None = None) -> Placement:
    """Places ``n`` ranks (None: ``default_ranks``) on this host. ``devices``: as in ``Session.up``.

    Raises ``ConfigError`` for an unknown device, or more ranks than devices.
    """
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
    arguments: Sequence[str] = (),
) -> list[RankSpec]:
    """Creates the spec of each rank of a placement.

    ``connection``: text of the controller's connection file for engines. ``first_rank``: engine id of the first rank
    (RANK always counts from 0). ``extra_environment``: further variables; those of the placement take precedence.
    ``arguments``: further arguments of the engines.
    """
    world_size = len(placement.bindings)
    return [
        RankSpec(
            rank=first_rank + binding.rank,
            device=binding.device,
            cores=list(binding.cores),
            environment={
                **(extra_environment or {}),
                **rank_environment(binding, world_size=world_size, master_addr=MASTER_ADDR, master_port=master_port),
            },
            profile_dir=str(profile_dir),
            work_dir=os.getcwd(),
            connection=connection,
            preload=kind.preload,
            python=kind.python,
            arguments=list(arguments),
        )
        for binding in placement.bindings
    ]
