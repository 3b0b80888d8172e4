"""Writes a run in the formats of other tools: ``export(run, to)``.

Each format is written by a module, named in ``FORMATS``. Its function ``write(source, out)`` writes the run ``source``
into the folder ``out`` and returns the file or folder to open.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import ConfigError, RunDirectoryError, suggest

if TYPE_CHECKING:
    from workbench.rundir.state import HasPath

#: format -> (module, description)
FORMATS = {
    "csv": ("tables", "one CSV file per table, and one with the metrics of the run"),
    "parquet": ("tables", "one Parquet file per table, and one with the metrics of the run"),
    "tensorboard": (
        "tensorboard",
        "TensorBoard event files: scalars, histograms of gradients, text samples, logged images",
    ),
    "trace": ("trace", "a timeline (JSON) for Perfetto or chrome://tracing, with phases and collectives of every rank"),
    "wandb": ("to_wandb", "a Weights & Biases run, written by its client"),
    "dcp": (
        "to_dcp",
        "a directory of torch.distributed.checkpoint: weights and optimizer state of the newest checkpoint, or of the "
        "last one within --steps",
    ),
    "mlflow": ("to_mlflow", "an MLflow run, written by its client"),
}
FOLDER = "exports"


def export(
    run: HasPath | str | Path, to: str, out: str | Path | None = None, *, steps: tuple[int, int] | None = None
) -> Path:
    """Write a run in another tool's format and return the folder or file to open.

    ``run``: a ``Run``, its name or its directory. ``to``: a key of ``FORMATS``. ``out``: the folder to write into
    (default: ``exports/<format>`` in the run directory). ``steps``: the first and the last step to write (default: all
    steps).

    Raises ``ConfigError`` if the format is unknown, its client is not installed or refuses the run, or the spec of the
    run cannot be read; raises ``RunDirectoryError`` if a log cannot be read or the folder cannot be written.
    """
    from workbench.export.source import ExportSource
    from workbench.rundir.state import directory_of

    if to not in FORMATS:
        raise ConfigError(f"unknown format {to!r}: {suggest(to, FORMATS)}", field="--to")
    path = directory_of(run)
    source = ExportSource(path, steps)
    folder = (Path(out).expanduser() if out is not None else path / FOLDER / to).absolute()
    write: Callable[..., Path] = importlib.import_module(f"workbench.export.{FORMATS[to][0]}").write
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write(source, folder, to) if FORMATS[to][0] == "tables" else write(source, folder)
    except OSError as error:
        raise RunDirectoryError(
            f"cannot export to {folder}: {error.strerror or error}; pass another folder with -o DIR"
        ) from error
