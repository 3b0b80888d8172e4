"""Replaying a step that went wrong: its batch, random state and weights, from the run directory, on idle ranks.

One data-parallel replica is enough, so ``tp x pp x cp`` ranks take part. Each reads what the rank of its place in the
replica kept, and writes what the replica found beside it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from workbench.core.config import SPEC_FILE, TrainSpec, read_spec_options
from workbench.core.frameworks import Capability
from workbench.core.mesh import Mesh
from workbench.engine.base.batch import StandIn
from workbench.engine.base.capabilities import Replayable, needed
from workbench.engine.base.names import users_name
from workbench.engine.data.batches import split
from workbench.engine.entry import build_workload, joined_of, load_strategy
from workbench.engine.faults.nonfinite import fault_directory, named_tensors
from workbench.engine.faults.nonfinite_search import Finding, NonfiniteSearch, find_origin
from workbench.engine.frameworks.torch_common.losses.calls import noted_losses
from workbench.engine.frameworks.torch_common.torch_settings import torch_defaults
from workbench.engine.state.batch_snapshot import load_batch_snapshot
from workbench.engine.state.randomness import RandomGenerators
from workbench.errors import RunDirectoryError
from workbench.rundir.kept_steps import REPLAY_FILE, STATISTICS_FILE, WEIGHTS_FILE, read_fault


def replay(run: str, step: int, first: int, rank: int, token: str) -> None:
    """Replay ``step`` of the replica whose ranks begin with ``first``, as its ``rank``-th rank. Collective over it.

    Raises ``RunDirectoryError`` when weights do not fit the model, and whatever building the model raises.
    """
    path = Path(run)
    whole = TrainSpec.from_options(read_spec_options(path / SPEC_FILE))
    spec = spec_of_replica(whole)
    directory = fault_directory(path, first + rank, step)
    about = read_fault(directory)
    joined = joined_of(spec)(rank, spec.plan.ranks, path, seed=spec.seed, token=token)
    with torch_defaults(), joined, noted_losses():
        strategy = load_strategy(spec)(spec, rank)
        workload = build_workload(path, spec)
        workload.knobs.restore(about.get("knobs", {}))
        strategy.check(spec, workload)
        strategy.prepare(workload)
        replayable = needed(strategy, Replayable, Capability.REPLAYABLE)
        try:
            load_weights(replayable.module, directory / WEIGHTS_FILE)
            batch, random = load_batch_snapshot(directory, workload.names)
            RandomGenerators({**replayable.generators(), **workload.generators}).restore(random)
            alike = {"estimate": None, "factor": None, "replicas": 1, "parts": about["accumulate"]}
            replayable.average.restore(about.get("loss_weights", alike))
            if (directory / STATISTICS_FILE).exists():
                replayable.norms.give(load_file(directory / STATISTICS_FILE))
            if about.get("stand_in"):
                batch = StandIn(batch)
            with NonfiniteSearch(replayable.module) as search:
                loss = replayable.rerun(split(batch, about["accumulate"]), search.loss)
            mine = {"loss": None if loss is None else float(loss).hex(), "logged_loss": about["loss"]}
            mine["finding"] = None if search.found is None else asdict(search.found)
            found = _of_replica(mine, first, spec.plan.mesh)
        finally:
            strategy.close()
    (directory / REPLAY_FILE).write_text(json.dumps(found), encoding="utf-8")


def _of_replica(mine: dict[str, Any], first: int, mesh: Mesh) -> dict[str, Any]:
    """What all its ranks found: the loss, which the last stage has, and the finding that the others may follow from,
    with its ``rank`` in the run. Collective."""
    size = mesh.world_size
    every = [mine] * size
    if size > 1:
        dist.all_gather_object(every, mine, group=dist.new_group(backend="gloo"))
    there = [rank for rank in range(size) if every[rank]["finding"] is not None]
    places = [(mesh.coordinates(rank).pp, mesh.peer(mesh.coordinates(rank)), every[rank]["finding"]) for rank in there]
    whose = there[find_origin([(pp, peer, Finding(**found)) for pp, peer, found in places])] if there else None
    finding = None if whose is None else every[whose]["finding"] | {"rank": first + whose}
    return {"loss": every[-1]["loss"], "logged_loss": every[-1]["logged_loss"], "finding": finding}


def spec_of_replica(spec: TrainSpec) -> TrainSpec:
    """The spec of one data-parallel replica alone: its ranks, its share of the batch."""
    mesh = spec.plan.mesh
    plan = dataclasses.replace(spec.plan, ranks=mesh.replica_size, replicate=1)
    return dataclasses.replace(spec, plan=plan, batch_size=spec.batch_size // mesh.dp)


@torch.no_grad()
def load_weights(module: torch.nn.Module, file: Path) -> None:
    """Copy what was kept into the module's parameters and buffers. ``RunDirectoryError`` when they are others."""
    kept: dict[str, Any] = {users_name(name): tensor for name, tensor in load_file(file).items()}
    own = named_tensors(module)
    wrong = sorted(
        set(own) ^ set(kept) | {name for name in set(own) & set(kept) if own[name].shape != kept[name].shape}
    )
    if wrong:
        raise RunDirectoryError(
            f"{file} does not fit the model that the run's spec makes: {', '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Was the code of the model changed since?"
        )
    for name, tensor in own.items():
        tensor.copy_(kept[name])
