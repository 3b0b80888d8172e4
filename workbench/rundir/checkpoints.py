"""Checkpoints of a run directory: where they are, which are whole, and what their index says. No torch here.

``checkpoints/step-000100/`` holds ``index.json`` (the whole: per tensor its name in the user's model, its shape and
which file has which elements; a checksum per file), and of each rank ``rank-00000.safetensors`` and ``rank-00000.json``
(random generators). It is written beside, as ``step-000100.tmp``, and renamed when it is complete. ``best/`` is one
more of the same form: that of the best value of ``--save-best``, which its index names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.core.controls import BEST, NEWEST
from workbench.errors import ConfigError, RunDirectoryError, SchemaError

CHECKPOINTS_DIR = "checkpoints"
INDEX_FILE = "index.json"
FORMAT = 1
#: what a ``resume`` begins with that is a directory of torch.distributed.checkpoint, and the file that makes it one
DISTRIBUTED, DISTRIBUTED_INDEX = "dcp:", ".metadata"
_STEP = re.compile(r"step-(\d{6,})")
TEMPORARY, REPLACED = ".tmp", ".old"


def directory(run: str | Path, step: int) -> Path:
    """Where the checkpoint after ``step`` is, or would be."""
    return Path(run) / CHECKPOINTS_DIR / f"step-{step:06d}"


def best_directory(run: str | Path) -> Path:
    """Where the best checkpoint is, or would be."""
    return Path(run) / CHECKPOINTS_DIR / BEST


def best_of(run: str | Path) -> dict[str, Any] | None:
    """Of the best checkpoint: ``name``, ``value`` and ``highest`` of what it is best at, and ``step``; None without
    one."""
    path = _restored(best_directory(run))
    if not (path / INDEX_FILE).exists():
        return None
    index = read_index(path)
    return {**index["best"], "step": index["step"]}


def steps(run: str | Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    parent = Path(run) / CHECKPOINTS_DIR
    names = [path.parent.name.removesuffix(REPLACED) for path in parent.glob(f"*/{INDEX_FILE}")]
    return sorted({int(match[1]) for name in names if (match := _STEP.fullmatch(name))})


def find(run: str | Path, step: int | str = NEWEST) -> Path:
    """The checkpoint after ``step``, the newest, or the best. ``ConfigError`` says which there are.

    One that was being replaced when its writer died is put back.
    """
    if step == BEST:
        if best_of(run) is None:
            raise ConfigError(f"{run} has no best checkpoint: --save-best validation_loss keeps one")
        return best_directory(run)
    known = steps(run)
    if not known:
        other = " but the best, RUN@best" if best_of(run) is not None else ""
        raise ConfigError(
            f"{run} has no checkpoint{other}: write one with run.checkpoint(), or train with --save-every N"
        )
    if step == NEWEST:
        step = max(known, key=lambda each: _saved_at(_present(run, each)))
    if step not in known:
        raise ConfigError(
            f"no checkpoint at step {step}: there are checkpoints at {', '.join(str(each) for each in known)}"
        )
    return _present(run, int(step))


def newest_of(places: Iterable[str | Path], since: float = 0.0) -> Path | None:
    """The newest checkpoint in any of these runs that was saved after ``since`` (seconds since the epoch), or None."""
    found = [find(place) for place in places if steps(place)]
    later = [path for path in found if _saved_at(path) > since]
    return max(later, key=_saved_at, default=None)


def _present(run: str | Path, step: int) -> Path:
    return _restored(directory(run, step))


def _restored(path: Path) -> Path:
    old = path.with_name(path.name + REPLACED)
    if not path.exists() and old.exists():
        old.rename(path)
    return path


def _saved_at(path: Path) -> float:
    return float(read_index(path)["saved_at"])


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its directory's name."""
    if path.name == BEST:
        return int(read_index(path)["step"])
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise ConfigError(f"{path} is not a checkpoint: the directory of one is called step-000100")
    return int(match[1])


def split(name: str) -> tuple[str, int | str]:
    """``"RUN@100"`` -> ``("RUN", 100)``, ``"RUN@best"`` -> ``("RUN", "best")``; without a step: the newest.
    ``ConfigError`` for a step that is none."""
    run, at, step = name.rpartition("@")
    if not at:
        return name, NEWEST
    if not run or not (step.isdigit() or step in (NEWEST, BEST)):
        raise ConfigError(
            f"{name!r} is not a checkpoint: write RUN, RUN@STEP such as first@100, or RUN@best", field="--resume"
        )
    return run, step if step in (NEWEST, BEST) else int(step)


def distributed(name: str) -> Path | None:
    """The directory of torch.distributed.checkpoint that ``"dcp:DIR"`` names; None for a run's checkpoint."""
    return Path(name.removeprefix(DISTRIBUTED)).expanduser().absolute() if name.startswith(DISTRIBUTED) else None


def read_index(path: Path) -> dict[str, Any]:
    """The index of a checkpoint. ``RunDirectoryError`` when it cannot be read, ``SchemaError`` if it is newer."""
    try:
        index = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))
        version = index["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path} has no readable {INDEX_FILE}: {error}; use another checkpoint") from error
    if version > FORMAT:
        raise SchemaError(f"{path} has format {version}, this version reads up to {FORMAT}: update dist-workbench")
    return dict(index)


def digest(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def verify(path: Path, files: list[str] | None = None) -> None:
    """Check files of a checkpoint (default: all) against their checksums; ``RunDirectoryError`` names the first bad."""
    index = read_index(path)
    for name in sorted(index["files"]) if files is None else files:
        try:
            found = digest(path / name)
        except OSError as error:
            raise RunDirectoryError(f"{path / name} cannot be read: {error.strerror}") from error
        if found != index["files"][name]["sha256"]:
            raise RunDirectoryError(f"{path / name} was changed or is damaged: its checksum differs from the index")


def total_bytes(path: Path) -> int:
    """Bytes of all files of a checkpoint."""
    return sum(file["bytes"] for file in read_index(path)["files"].values())


def publish(path: Path) -> None:
    """Make the finished ``step-….tmp`` the checkpoint: flushed to the disk, then renamed; one of before is replaced."""
    temporary, old = path.with_name(path.name + TEMPORARY), path.with_name(path.name + REPLACED)
    sync(temporary)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    temporary.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_best(run: Path, parent: Path) -> None:
    """Take over the best checkpoint of ``parent``, a run that this one continues: as links where the disk has them."""
    temporary = best_directory(run).with_name(BEST + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copytree(best_directory(parent), temporary, copy_function=_linked)
    publish(best_directory(run))


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
    return target


def remove_old(run: str | Path, keep: int) -> list[int]:
    """Remove all but the newest ``keep`` (0: all stay) of those that ``--save-every`` wrote; which were removed.

    Those that somebody asked for stay.
    """
    if not keep:
        return []
    found = []
    for step in steps(run):
        index = read_index(_present(run, step))
        if not index["asked"]:
            found.append((index["saved_at"], step))
    removed = [step for _, step in sorted(found)[:-keep]]
    for step in removed:
        path = directory(run, step)
        (path / INDEX_FILE).unlink(missing_ok=True)  # no longer a checkpoint, whatever becomes of the rest
        shutil.rmtree(path, ignore_errors=True)
    return removed
