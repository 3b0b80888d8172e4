"""Write a run in the format of another tool: CSV, Parquet, TensorBoard, Perfetto, Weights & Biases, MLflow or
torch.distributed.checkpoint."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

NAME = "export"
HELP = "write a run in the format of another tool"
#: how to open what was written
NEXT = {
    "tensorboard": "tensorboard --logdir {path}",
    "trace": "open https://ui.perfetto.dev and drop {path} there (it stays on your machine)",
    "wandb": "wandb sync {path}",
    "dcp": "torch.distributed.checkpoint.load({{'model': ..., 'optim': ...}}, checkpoint_id='{path}')",
    "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {path}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench export``."""
    from workbench.export import FORMATS

    parser.add_argument("run_name", metavar="RUN", nargs="?", help="a run directory or a run's name (default: newest)")
    formats = "; ".join(f"{name}: {about}" for name, (_, about) in FORMATS.items())
    parser.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="where to write (default: exports/FORMAT in the run directory)"
    )
    parser.add_argument("--steps", metavar="A-B", help="steps A to B only, for example 100-120 (default: all)")


def run(arguments: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    from workbench.export import export
    from workbench.rundir.state import find

    given = arguments.run_name or find(None)
    path = export(given, arguments.to, arguments.out, steps=steps_of(arguments.steps))
    print(path)
    if arguments.to in NEXT:
        print(NEXT[arguments.to].format(path=path))
    return 0


def steps_of(text: str | None) -> tuple[int, int] | None:
    """``"100-120"`` -> (100, 120); a single number is one step. ``ConfigError`` for anything else."""
    from workbench.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ConfigError(f"--steps {text}: a range such as 100-120", field="--steps")
    return int(match[1]), int(match[2] or match[1])
