"""What ``%dist_lab`` takes beside the flags of a run."""

from __future__ import annotations

from typing import Any

from workbench.core import algorithms
from workbench.errors import ConfigError

#: whole gradients, by an all-reduce
DDP = "ddp"
#: what is compared unless other algorithms are named
DEFAULT = "ddp,bf16,topk:0.01+ef,powersgd:4"
#: flag -> keywords of argparse
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--config", {"metavar": "FILE", "help": "a spec file (TOML); flags override it"}),
    (
        "--algorithms",
        {
            "metavar": "A,B,...",
            "default": DEFAULT,
            "help": f"what is compared, as --algorithm takes it; ddp: whole gradients (default: {DEFAULT})",
        },
    ),
    (
        "--seeds",
        {"metavar": "N", "type": int, "default": 1, "help": "train each with N seeds, from --seed on (default: 1)"},
    ),
    (
        "--target",
        {
            "metavar": "LOSS",
            "type": float,
            "help": "the loss whose time is compared (default: the lowest that all reach)",
        },
    ),
)


def read(text: str) -> list[str]:
    """The algorithms of ``--algorithms``, each once, as ``TrainSpec`` has them; "" for whole gradients.

    Takes ``bf16``, and ``ddp:bf16`` as in a plan. Raises ``ConfigError`` for one that there is not, and for none.
    """
    found: dict[str, None] = {}
    for word in (each.strip() for each in text.split(",")):
        if word:
            name = word.removeprefix(f"{DDP}:")
            found["" if name == DDP else algorithms.chosen(name).text] = None
    if not found:
        raise ConfigError(f"--algorithms {text!r} names none: write {DEFAULT}", field="--algorithms")
    return list(found)


def called(algorithm: str) -> str:
    """What an algorithm is called in results."""
    return algorithm or DDP
