"""What the bare scripts share: the model and data that they train, and how a step is timed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from workbench.core.config import TrainSpec
from workbench.core.recipe import recipe

#: first steps that do not count
WARM_UP = 10


def work_of(ranks: int, batch_size: int, steps: int) -> Any:
    """The recipe stdlib-llama: model, optimizer, data, criterion."""
    size = recipe("stdlib-llama").defaults["tiny"]
    options = {**size, "recipe": "stdlib-llama", "size": "tiny", "ranks": ranks, "batch_size": batch_size}
    return recipe("stdlib-llama").build(TrainSpec.from_options({**options, "steps": steps}))


def median_step_ms(ends: Sequence[float]) -> float:
    """Milliseconds of the median step after the first ones. ``ends``: seconds at which steps ended."""
    return 1e3 * statistics.median(end - begin for begin, end in pairwise(ends[WARM_UP - 1 :]))
