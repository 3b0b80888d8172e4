"""Writes a checkpoint of a run as a directory of ``torch.distributed.checkpoint``, which ``dcp.load`` reads."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from workbench.errors import ConfigError
from workbench.export.source import ExportSource
from workbench.rundir import checkpoints


def write(source: ExportSource, out: Path) -> Path:
    """Write the newest checkpoint, or the last one within ``source.steps``, into ``out``, and return ``out``.

    Raises ``ConfigError`` when there is none, and as ``engine.state.distributed.write_distributed``.
    """
    path = checkpoints.find(source.path)
    if source.steps is not None:
        first, last = source.steps
        within = [step for step in checkpoints.steps(source.path) if first <= step <= last]
        if not within:
            known = ", ".join(str(step) for step in checkpoints.steps(source.path))
            raise ConfigError(
                f"no checkpoint in steps {first} to {last}: there are checkpoints at {known}", field="--steps"
            )
        path = checkpoints.find(source.path, within[-1])
    resolve_name("workbench.engine.state.distributed:write_distributed")(path, out)
    return out
