"""Sequences of tokens for a language model. Importing this module imports no tensor library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch

#: one in so many sequences, the last ones, is for validation
VALIDATION_ONE_IN = 20


def cut_windows(tokens: np.ndarray[Any, Any], length: int, what: str, flag: str) -> torch.Tensor:
    """Split ``tokens`` into sequences, int64 [sequences, length]; what is left at the end is dropped.

    Raises ``ConfigError`` in the name of ``flag`` when ``what``, their text, is too short for one sequence.
    """
    import torch

    count = len(tokens) // length
    if not count:
        raise ConfigError(
            f"{what} has {len(tokens)} tokens, too few for one sequence of {length}: give more text, or "
            "shorter sequences",
            field=flag,
        )
    return torch.from_numpy(tokens[: count * length].astype("int64")).view(count, length)


def split_validation(windows: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences to train on, and the last ones, to validate on. ``ConfigError`` when there is only one."""
    if len(windows) < 2:
        raise ConfigError(
            f"--data has one sequence of --seq-len {length}, and two are needed, one of them for validation: give "
            f"more text, or --seq-len {length // 2}",
            field="--data",
        )
    held_out = max(1, len(windows) // VALIDATION_ONE_IN)
    return windows[:-held_out], windows[-held_out:]
