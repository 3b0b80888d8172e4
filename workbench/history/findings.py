"""What a comparison of runs finds, as data: numbers of each run, repeats, differences, tests, scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.history.sources import ComparedRun
from workbench.history.statistics import Amdahl, Permutation, Welch

#: a difference with a smaller p is more than seed noise
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One run in numbers: NaN where it has none.

    ``loss``: mean training loss over the last tenth of what all runs reached. ``validation``: the last validation loss
    up to there, ``validation_step`` its step (0: none). Over steps and tokens it is the last at a place of the axis at
    which all runs that validate did; ``validation_is_common`` is false where there is none. ``tps``: tokens per second
    per device, median without the first step. ``seconds``: of training.
    """

    loss: float
    best_loss: float
    validation: float
    tps: float
    seconds: float
    steps: int
    validation_step: int = 0
    validation_is_common: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """Repeats: runs whose spec and cell are the same apart from seed and name. ``seeds``: one per member."""

    label: str
    members: tuple[int, ...]
    seeds: tuple[Any, ...]

    def repeats(self, metric: str, figures: Sequence[Figures]) -> list[float]:
        """The independent values of a metric. Losses of one seed come out alike: its runs are one repeat, with their
        mean. Throughput is measured anew in each run."""
        values = [getattr(figures[index], metric) for index in self.members]
        if metric == "tps":
            return values
        by_seed: dict[Any, list[float]] = {}
        for seed, value in zip(self.seeds, values, strict=True):
            by_seed.setdefault(seed, []).append(value)
        return [float(np.mean(alike)) for alike in by_seed.values()]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting that is not the same in all runs. ``section``: spec, environment or code."""

    section: str
    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class NoiseTest:
    """Whether ``metric`` of two groups (indices) differs by more than seeds make it. ``p``: Welch's, after Holm."""

    metric: str
    a: int
    b: int
    welch: Welch
    permutation: Permutation
    p: float

    @property
    def exceeds(self) -> bool:
        """Whether the difference is larger than seed noise explains."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Throughput over ranks: ``total`` tokens per second of all ranks, ``speed_up`` and ``efficiency`` over the fewest.

    ``fit`` is Amdahl's law on the time per token; None for weak scaling (``weak``: the global batch is not the same).
    """

    ranks: tuple[int, ...]
    total: tuple[float, ...]
    speed_up: tuple[float, ...]
    efficiency: tuple[float, ...]
    fit: Amdahl | None
    weak: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a comparison found. Indices in ``groups`` are of ``compared``, indices in ``tests`` are of ``groups``.

    ``x``: the axis over which curves are laid. ``common``: how far on it all runs came.
    """

    compared: tuple[ComparedRun, ...]
    x: str
    common: float
    figures: tuple[Figures, ...]
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]
    code_diffs: dict[str, str]
    tests: tuple[NoiseTest, ...]
    scaling: Scaling | None

    @property
    def counts(self) -> str:
        """What throughput counts: tokens, samples, or "samples or tokens" where runs that took a step differ in it."""
        trained = [run for run in self.compared if run.curve["step"].size]
        return " or ".join(sorted({run.counts for run in trained or self.compared}))
