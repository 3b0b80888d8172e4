"""Reads the logs of a run as far as possible, and describes in sentences which logs are missing, cut off or damaged."""

from __future__ import annotations

from pathlib import Path

from workbench.core.columns import Columns
from workbench.core.controls import LIVE
from workbench.core.mesh import Mesh
from workbench.core.records import SESSION_RANK, TABLES
from workbench.errors import RunDirectoryError, format_ranks
from workbench.rundir.log import rank_directory
from workbench.telemetry.store import Store

_END_OF_STREAM_MARK = b"\xff\xff\xff\xff\x00\x00\x00\x00"
#: logs that are named in notes; further ones are only counted
_MAX_NAMED_LOGS = 20


def read_logs(store: Store, notes: list[str]) -> None:
    """Read every log of a store that was made with ``spare=True``, and append a note for each unreadable log."""
    try:
        store.refresh()
    except RunDirectoryError as error:
        notes.append(f"Reading the logs stopped before their end: {error}")
    notes += [
        f"A log could not be read: {_describe_problem(path, problem)}"
        for path, problem in list(store.problems.items())[:_MAX_NAMED_LOGS]
    ]
    if len(store.problems) > _MAX_NAMED_LOGS:
        notes.append(f"{len(store.problems) - _MAX_NAMED_LOGS} more logs could not be read.")


def _describe_problem(path: str, problem: str) -> str:
    if path in problem:
        return problem
    return f"{path} is damaged: {problem}. This report contains only the records before the damage."


def ranks_without_rows(table: Columns, mesh: Mesh) -> frozenset[int]:
    """The ranks that have no rows in a table. Empty if no rank has rows in it."""
    ranks_with_rows = {int(rank) for rank in set(table["rank"].tolist()) if rank != SESSION_RANK}
    return frozenset(range(mesh.world_size)) - ranks_with_rows if ranks_with_rows else frozenset()


def describe_gaps(store: Store, mesh: Mesh, ranks_with_logs: list[int], metrics: Columns, status: str) -> list[str]:
    """Sentences about ranks without a log, logs that are cut off or damaged, and steps without metrics."""
    notes = []
    missing = sorted(set(range(mesh.world_size)) - set(ranks_with_logs))
    if missing:
        notes.append(f"There is no log of {format_ranks(missing)}. The run has {mesh.world_size} ranks.")
    if store.absent and metrics["step"].size:
        notes.append(
            f"There are no steps of {format_ranks(store.absent)}. The metrics of the run cover the other ranks only, "
            "and the norm of the whole gradient is not known."
        )
    elif not metrics["step"].size and mesh.world_size > 1:
        notes.append(f"No step was logged by all {mesh.world_size} ranks, so the run has no metrics.")
    elif not metrics["step"].size:
        notes.append("No step was logged, so the run has no metrics.")
    if status in LIVE:
        notes.append("The run had not ended when this report was written.")
        return notes
    logs = {rank: [rank_directory(store.run, rank) / f"{table}.arrow" for table in TABLES] for rank in ranks_with_logs}
    cut = set(store.cut())
    unclosed = [rank for rank, files in logs.items() if any(map(_is_unclosed, files))]
    damaged = [rank for rank, files in logs.items() if rank not in unclosed and cut & set(files)]
    if unclosed:
        notes.append(f"The log of {format_ranks(unclosed)} was not closed. This report contains its complete batches.")
    if damaged:
        notes.append(
            f"The log of {format_ranks(damaged)} is damaged. This report contains only the records before the damage."
        )
    return notes


def _is_unclosed(path: Path) -> bool:
    """Whether a stream has no end mark, because its writer was killed or the file was truncated."""
    try:
        with path.open("rb") as file:
            file.seek(-min(len(_END_OF_STREAM_MARK), path.stat().st_size), 2)
            return file.read() != _END_OF_STREAM_MARK
    except FileNotFoundError:
        return False
