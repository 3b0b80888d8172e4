"""The options of a run as flags, declared once: ``%dist_train`` and ``workbench train`` take the same.

Names follow torchrun; ``--a-b`` and ``--a_b`` are both accepted (``normalised``). A flag that is not given is None, so
that a spec file or a recipe's default stands.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from workbench.config import MONITOR_LEVELS, ON_NONFINITE, PLUGINS, PRECISIONS


def share(text: str) -> float:
    """``"1%"`` or ``"0.01"`` -> 0.01."""
    return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option: its spellings, the option of ``TrainSpec`` it sets, its type and what it does.

    ``kind`` None: a switch without a value.
    """

    names: tuple[str, ...]
    option: str
    kind: Callable[[str], Any] | None
    help: str
    metavar: str | None = None

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for ``add_argument`` (argparse's and IPython's alike)."""
        shared = {"dest": self.option, "default": None, "help": self.help}
        if self.kind is None:
            return {**shared, "action": "store_const", "const": True}
        return {**shared, "type": self.kind, "metavar": self.metavar or self.option.upper()}


FLAGS = (
    Flag(names=("--recipe",), option="recipe", kind=str, help="a ready model with real data, such as stdlib-llama"),
    Flag(names=("--size",), option="size", kind=str, help="size of the recipe's model, such as tiny"),
    Flag(names=("-n", "--nproc-per-node"), option="ranks", kind=int, metavar="N", help="how many ranks train"),
    Flag(names=("--plugin",), option="plugin", kind=str, help=f"Colossal-AI plugin: {', '.join(PLUGINS)}"),
    Flag(names=("--tp",), option="tp", kind=int, help="tensor parallel size"),
    Flag(names=("--pp",), option="pp", kind=int, help="pipeline parallel size (stages)"),
    Flag(names=("--micro-batches",), option="micro_batches", kind=int, metavar="M",
         help="pieces a pipeline cuts a batch into (default: --pp)"),
    Flag(names=("--steps",), option="steps", kind=int, help="optimizer steps"),
    Flag(names=("--batch-size",), option="batch_size", kind=int, help="global batch: samples per step over all ranks"),
    Flag(names=("--lr",), option="lr", kind=float, help="learning rate"),
    Flag(names=("--precision",), option="precision", kind=str, help=f"{', '.join(PRECISIONS)}"),
    Flag(names=("--seed",), option="seed", kind=int, help="seed of weights and data order"),
    Flag(names=("--accumulate",), option="accumulate", kind=int, metavar="A",
         help="pieces a rank cuts its share of the batch into, one after another"),
    Flag(names=("--clip",), option="clip", kind=float, metavar="NORM", help="largest global gradient norm (0: any)"),
    Flag(names=("--shuffle",), option="shuffle", kind=None, help="read the dataset in a seeded random order"),
    Flag(names=("--eval-every",), option="eval_every", kind=int, metavar="STEPS", help="steps between evaluations"),
    Flag(names=("--grad-every",), option="grad_every", kind=int, metavar="STEPS",
         help="steps between gradient statistics (0: never; default: chosen to stay within the budget)"),
    Flag(names=("--monitor",), option="level", kind=str, metavar="LEVEL",
         help=f"what is watched: {', '.join(MONITOR_LEVELS)}"),
    Flag(names=("--grad-layers",), option="grad_layers", kind=str, metavar="REGEX",
         help="watch only layers with such names"),
    Flag(names=("--monitor-budget",), option="budget", kind=share, metavar="SHARE",
         help="what watching may cost of the step time, such as 1%% (default)"),
    Flag(names=("--on-nonfinite",), option="on_nonfinite", kind=str, metavar="WHAT",
         help=f"what a NaN or infinity does: {', '.join(ON_NONFINITE)}"),
    Flag(names=("--save-every",), option="save_every", kind=int, metavar="STEPS",
         help="steps between checkpoints (0: none)"),
    Flag(names=("--keep",), option="keep", kind=int, metavar="K", help="how many checkpoints to keep (0: all)"),
    Flag(names=("--resume",), option="resume", kind=str, metavar="RUN[@STEP]", help="go on from a checkpoint"),
    Flag(names=("--name",), option="name", kind=str, help="name of the run"),
)  # fmt: skip

_LONG_FLAG = re.compile(r"(?<!\S)--[A-Za-z][\w-]*")


def normalised(line: str) -> str:
    """A command line whose long flags are spelt with ``-``: ``--nproc_per_node 2`` -> ``--nproc-per-node 2``."""
    return _LONG_FLAG.sub(lambda match: match.group().replace("_", "-"), line)


def add_to(parser: argparse.ArgumentParser, options: Collection[str] | None = None) -> None:
    """Add every flag to an argparse parser, or those of ``options`` only."""
    for flag in FLAGS:
        if options is None or flag.option in options:
            parser.add_argument(*flag.names, **flag.keywords())


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a run among parsed arguments, those given only."""
    values = vars(arguments)
    return {flag.option: values[flag.option] for flag in FLAGS if values.get(flag.option) is not None}
