"""What is kept and what goes: removing, archiving, restoring and pruning run directories.

Only ended runs are touched: one that trains still is refused. A run tagged ``keep`` is never pruned.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from workbench.errors import ConfigError, RunDirectoryError, RunError
from workbench.history import logs
from workbench.history.row import BROKEN, EVENT_COLUMNS, RunRow, present_state, read_row
from workbench.rundir import directory as run_directory
from workbench.rundir.state import ENDED, owner_is_alive, state_of

KEEP_TAG = "keep"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def check_ended(run: Path) -> RunRow:
    """The row of a run that nothing writes to any more; ``RunError`` for one that still trains."""
    row = read_row(run)
    state = present_state(row, run)
    if state == BROKEN and owner_is_alive(run):
        # the logs may still tell that it is over; where they cannot, its living owner may be writing
        found = logs.read(run, {"events": EVENT_COLUMNS})
        state = state_of(found.tables["events"], max(1, len(found.ranks)))
    if state not in (*ENDED, BROKEN):
        raise RunError(
            f"run {run.name!r} is {state} at step {row.steps}: stop it first (%dist_stop, run.stop(), or Ctrl-C where "
            "it was started)"
        )
    return row


def remove(run: Path) -> int:
    """Remove the directory of an ended run; returns the bytes that were freed."""
    row = check_ended(run)
    try:
        shutil.rmtree(run)
    except OSError as error:
        raise RunDirectoryError(f"cannot remove {run}: {error.strerror}") from error
    return row.disk_bytes


def archive(run: Path) -> Path:
    """Pack an ended run into ``<directory>.tar.zst`` beside it (``.tar.gz`` without zstd), remove it, return the file.

    The directory goes only once the archive was read back and every file in it has its size. ``restore``, or
    ``tar --zstd -xf`` there, brings the run back.
    """
    check_ended(run)
    packed = run.with_name(run.name + _suffix())
    if packed.exists():
        raise RunDirectoryError(f"{packed} exists already: move it away first")
    beside = packed.with_name(f".{packed.name}.{os.getpid()}")
    try:
        # 0600 from its first byte: an archive holds what the directory's own mode kept from others
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
        with _packing(beside, packed.name) as tar:
            tar.add(run, arcname=run.name)
        _compare(beside, packed.name, run)
        beside.rename(packed)
        shutil.rmtree(run)
    except (OSError, tarfile.TarError) as error:
        beside.unlink(missing_ok=True)
        raise RunDirectoryError(f"cannot archive {run}: {error}") from error
    return packed


def restore(packed: Path, home: Path | None = None) -> Path:
    """Unpack an archive beside itself (or into ``home``) and return the run directory. The archive stays."""
    target = home or packed.absolute().parent
    beside = target / f".restore-{os.getpid()}"
    try:
        beside.mkdir(mode=0o700)
        try:
            with _unpacking(packed, packed.name) as tar:
                for member in tar:
                    tar.extract(member, beside, filter="data")  # refuses what would leave the folder
            found = list(beside.iterdir())
            if len(found) != 1 or found[0] not in run_directory.run_directories(beside):
                raise RunDirectoryError(f"{packed} is not the archive of a run")
            path = target / found[0].name
            if path.exists():
                raise RunDirectoryError(f"{path} exists already: move it away first")
            found[0].chmod(0o700)
            found[0].rename(path)
        finally:
            shutil.rmtree(beside)
    except (OSError, tarfile.TarError) as error:
        raise RunDirectoryError(f"cannot unpack {packed}: {error}") from error
    return path


@contextmanager
def _packing(path: Path, name: str) -> Iterator[tarfile.TarFile]:
    with (
        pa.output_stream(str(path), compression=_codec(name)) as stream,
        tarfile.open(fileobj=_file(stream), mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        yield tar


@contextmanager
def _unpacking(path: Path, name: str) -> Iterator[tarfile.TarFile]:
    with (
        pa.input_stream(str(path), compression=_codec(name)) as stream,
        tarfile.open(fileobj=_file(stream), mode="r|") as tar,
    ):
        yield tar


def _file(stream: Any) -> IO[bytes]:
    return stream  # type: ignore[no-any-return]  # Arrow's streams are file objects


def _suffix() -> str:
    return ".tar.zst" if pa.Codec.is_available("zstd") else ".tar.gz"


def _codec(name: str) -> str:
    if name.endswith(".tar.zst"):
        return "zstd"
    if name.endswith(".tar.gz"):
        return "gzip"
    raise RunDirectoryError(f"{name} is not the archive of a run: its name ends in .tar.zst or .tar.gz")


def _compare(packed: Path, name: str, run: Path) -> None:
    """``OSError`` unless the archive holds every file of the directory with its size."""
    with _unpacking(packed, name) as tar:
        sizes = {member.name: member.size for member in tar if member.isfile() and not member.islnk()}
    for path in run.rglob("*"):
        inside = f"{run.name}/{path.relative_to(run).as_posix()}"
        plain = path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
        if plain and sizes.get(inside) != path.stat().st_size:
            raise OSError(f"{inside} changed while it was packed; try again")


def seconds(text: str) -> float:
    """``"30d"`` -> 2592000.0; units s, m, h, d, w. ``ConfigError`` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise ConfigError(
            f"{text!r} is not an age: write a number and s, m, h, d or w, such as 30d", field="--older-than"
        )
    return float(match[1]) * _UNITS[match[2]]


def prunable(
    rows: Sequence[RunRow], *, keep: int | None = None, older_than_s: float | None = None, now: float | None = None
) -> list[RunRow]:
    """Which rows a retention policy lets go, oldest first: pure.

    ``keep``: the newest so many stay, whatever their age. ``older_than_s``: only runs that began longer ago go. With
    both, a run goes when both allow it. Runs that train, and those tagged ``keep``, always stay. ``ConfigError`` when
    neither is given.
    """
    if keep is None and older_than_s is None:
        raise ConfigError("nothing says which runs to remove: pass --keep N, --older-than AGE, or both", field="--keep")
    if keep is not None and keep < 0:
        raise ConfigError(f"--keep must be at least 0, not {keep}", field="--keep")
    now = time.time() if now is None else now
    ordered = sorted(rows, key=lambda row: (row.when, row.directory))
    candidates = ordered if keep is None else ordered[: max(0, len(ordered) - keep)]
    return [
        row
        for row in candidates
        if row.state in (*ENDED, BROKEN)
        and KEEP_TAG not in row.tags
        and (older_than_s is None or now - row.when > older_than_s)
    ]
