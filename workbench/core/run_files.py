"""What may stand in a run directory: ``runs/<date>-<name>/`` under the current directory, or under
``$WORKBENCH_HOME``, mode 0700.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """A file or folder of a run directory: a shell pattern of its path there, and what it is."""

    pattern: str
    what: str


FILES = (
    RunFile(pattern="spec.toml", what="everything needed to run it again, with versions and machine"),
    RunFile(pattern="cell.py", what="the source of the cell, if a cell defined the model"),
    RunFile(pattern="algorithm.py", what="the source of the communication algorithm, if a cell defined it"),
    RunFile(pattern="ds_config.json", what="DeepSpeed's configuration, resolved: of flags, `--ds-config` and defaults"),
    RunFile(pattern="names.json", what="names of `%%dist` cells that the cell uses: imports, sources, values"),
    RunFile(pattern="modules/*.py", what="copies of the local modules that the cell imports"),
    RunFile(
        pattern="environment.json",
        what="packages, command line, git commit and uncommitted changes; settings of torch that the cell changed",
    ),
    RunFile(
        pattern="rank-?????/*.arrow",
        what="that rank's log: an Arrow IPC stream per record type, readable up to the last whole batch",
    ),
    RunFile(pattern="rank-?????/*.txt", what="what the rank printed (`output.txt`)"),
    RunFile(pattern="rank-?????/media/*.png", what="images that the cell logged with `log.image`"),
    RunFile(
        pattern="rank-?????/nonfinite-step-*", what="a step whose loss or gradient was not finite, for `%dist_replay`"
    ),
    RunFile(pattern="session/*.arrow", what="events seen by the notebook, such as the death of a rank"),
    RunFile(pattern="control.jsonl", what="commands, in order, one JSON object a line"),
    RunFile(pattern="owner.json", what="the process that started the run"),
    RunFile(pattern="owner.log", what="what that process printed, of a detached run"),
    RunFile(pattern="heartbeat", what="touched every 10 s while the run is alive: other hosts look at it"),
    RunFile(pattern="labels.json", what="tags and note of `workbench runs tag` and `note`"),
    RunFile(pattern="checkpoints/*", what="checkpoints, a folder `step-000100` each: safetensors and an index"),
    RunFile(pattern="nonfinite/*", what="the same, in run directories of older versions"),
    RunFile(pattern="exports/*", what="what `workbench export` wrote, a folder per format"),
    RunFile(pattern="verification.json", what="what `%dist_verify` or `run.verify()` found"),
    RunFile(pattern="verify/*", what="the trainings that it is compared with, while it is"),
    RunFile(pattern="recording/*", what="gradients and weights of a training that is verified, while it is"),
    RunFile(pattern="report.html", what="the report, once written"),
)


def known(path: str) -> bool:
    """Whether a path relative to the run directory is one of ``FILES``."""
    return any(fnmatch.fnmatchcase(path, each.pattern) for each in FILES)
