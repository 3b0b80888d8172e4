"""What a run directory lacks or has damaged, in sentences: the logs are read as far as they can be."""

from __future__ import annotations

from pathlib import Path

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.core.records import SESSION_RANK, TABLES
from workbench.errors import RunDirectoryError, format_ranks
from workbench.rundir.log import rank_directory
from workbench.telemetry.store import Store

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_MOST_NAMED = 20


def read_logs(store: Store, notes: list[str]) -> None:
    """Read every log of a store that spares the others one that is broken or of a newer version; each is said."""
    try:
        store.refresh()
    except RunDirectoryError as error:
        notes.append(f"The logs could not be read to their end: {error}")
    notes += [f"A log could not be read: {_named(path, said)}" for path, said in store.problems.items()][:_MOST_NAMED]
    if len(store.problems) > _MOST_NAMED:
        notes.append(f"{len(store.problems) - _MOST_NAMED} more logs could not be read.")


def _named(path: str, said: str) -> str:
    return said if path in said else f"{path} is damaged: {said}; what stands before that place is here."


def silent(rows: Columns, mesh: Mesh) -> frozenset[int]:
    """Ranks that have no row of a table of which others have some."""
    spoken = {int(rank) for rank in set(rows["rank"].tolist()) if rank != SESSION_RANK}
    return frozenset(range(mesh.world_size)) - spoken if spoken else frozenset()


def notes_of(store: Store, mesh: Mesh, present: list[int], metrics: Columns, status: str) -> list[str]:
    """Sentences about ranks without a log, logs that were cut off, and steps that no one can add up."""
    notes = []
    missing = sorted(set(range(mesh.world_size)) - set(present))
    if missing:
        notes.append(f"No log of {format_ranks(missing)} of {mesh.world_size}.")
    if store.absent and metrics["step"].size:
        notes.append(
            f"No step of {format_ranks(store.absent)} is known: figures of the whole run are those of the other ranks, "
            "and there is no norm of the whole gradient."
        )
    elif not metrics["step"].size and mesh.world_size > 1:
        notes.append(f"No step was reported by all {mesh.world_size} ranks, so there are no figures of the whole run.")
    elif not metrics["step"].size:
        notes.append("No step was reported, so there are no figures of the run.")
    if status in ("starting", "running"):
        notes.append("The run had not ended when this report was made.")
        return notes
    logs = {rank: [rank_directory(store.run, rank) / f"{table}.arrow" for table in TABLES] for rank in present}
    cut = set(store.cut())
    open_ = [rank for rank, files in logs.items() if any(map(_is_open, files))]
    broken = [rank for rank, files in logs.items() if rank not in open_ and cut & set(files)]
    if open_:
        notes.append(f"The log of {format_ranks(open_)} was not closed; everything up to its last whole batch is here.")
    if broken:
        notes.append(f"The log of {format_ranks(broken)} is damaged; what stands before that place is here.")
    return notes


def _is_open(path: Path) -> bool:
    """Whether a stream lacks its end mark: its writer was killed, or the file lost its tail."""
    try:
        with path.open("rb") as file:
            file.seek(-min(len(_END_OF_STREAM), path.stat().st_size), 2)
            return file.read() != _END_OF_STREAM
    except FileNotFoundError:
        return False
