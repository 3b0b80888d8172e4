"""The built-in rules on the values of a step: pure but for what they keep of the steps before."""

from __future__ import annotations

import itertools
import math
import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from workbench.core.records import EventKind
from workbench.events.decode import as_number
from workbench.telemetry.alerts.gap_test import LEAST, MOST, GapTest, medians_of_others
from workbench.telemetry.alerts.steps import StepView
from workbench.telemetry.spikes import LEAST_SHARE, MAD_OF_NORMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found at a step; fields as of ``events.alerts.Alert``."""

    where: str
    value: float = math.nan
    limit: float = math.nan
    rank: int = -1
    micro_batch: int = -1
    layer: str | None = None
    event: str = ""


class Rule(Protocol):
    """``name``: a key of ``events.alerts.RULES``. An alert begins after ``after`` looks in a row that find something,
    and ends after ``quiet`` looks in a row that find nothing."""

    name: str
    after: int
    quiet: int

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """What is found at this step; None where nothing can be said of it."""
        ...


#: an event of a spike is an alert once so much of what was usual lies above it,
SPIKE_SHARE = {"loss": LEAST_SHARE["loss"], "grad_norm": 2.0}
#: after the first steps, in which a rate warms up
SPIKES_FROM_STEP = 25


class FromEvents:
    """What rank 0 tells at once, as an event, of every step whether it is logged or not: spikes and values that are
    not finite."""

    after = 1

    def __init__(self, name: str, kind: EventKind, told: str = "", quiet: int = 5) -> None:
        self.name = name
        self._kind = kind
        self._told = told
        self.quiet = quiet
        self._limit = math.inf

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """The first of the step's events; while active, also a value that has not come back below the spike's limit."""
        for event in view.events:
            if event.kind == self._kind and self._told in ("", event.name):
                found = self._finding(event.name, event.fields)
                if self._kind != EventKind.SPIKE or (found.value > found.limit and event.step > SPIKES_FROM_STEP):
                    return [found]
        if not view.values:
            return None
        value = view.values.get(self._told, math.nan)
        if is_active and self._told and value > self._limit:
            return [Finding(where=_WHERE[self._told], value=value, limit=self._limit)]
        return []

    def _finding(self, name: str, told: dict[str, object]) -> Finding:
        if self._kind == EventKind.SPIKE:
            usual, value = as_number(told.get("usual")), as_number(told.get("value"))
            self._limit = usual + SPIKE_SHARE.get(name, LEAST_SHARE["loss"]) * abs(usual)
            return Finding(where=_WHERE.get(name, "loss"), value=value, limit=self._limit, event=f"{self._kind} {name}")
        rank, layer = as_number(told.get("rank")), told.get("layer")
        where = {"forward": "forward", "backward": "backward"}.get(
            str(told.get("where")), "loss" if name == "loss" else "reduction"
        )
        return Finding(
            where=where,
            rank=int(rank) if math.isfinite(rank) else -1,
            layer=layer if isinstance(layer, str) else None,
            event=f"{self._kind} {name}",
        )


_WHERE = {"loss": "mean loss", "grad_norm": "reduction"}


class Drift:
    """The median of the newest values beside the lowest such median of the steps before: a curve that falls, as a loss
    does at first, hides no rise."""

    after, quiet = 1, 10
    NEW, OLD = 10, 50

    def __init__(self, name: str, value: str, share: float, deviations: float, end_share: float) -> None:
        self.name = name
        self._value = value
        self._share, self._deviations, self._end_share = share, deviations, end_share
        self._recent: deque[float] = deque(maxlen=self.NEW + self.OLD)
        self._medians: deque[float] = deque(maxlen=self.OLD)
        self._usual = math.nan

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """Compares with what was usual when the alert began, while it lasts."""
        value = view.values.get(self._value, math.nan)
        if not math.isfinite(value):
            return None
        self._recent.append(value)
        values = list(self._recent)
        now = statistics.median(values[-self.NEW :])
        before = list(self._medians)
        self._medians.append(now)
        if len(values) < self.NEW + self.OLD:
            return None
        if is_active:
            limit = self._usual + self._end_share * abs(self._usual)
        else:
            self._usual = min(before[: -self.NEW + 1])
            # of single values, from their differences: a trend does not count
            noise = robust([later - value for value, later in itertools.pairwise(values)])[1] / math.sqrt(2)
            limit = self._usual + max(self._share * abs(self._usual), self._deviations * noise)
        return [Finding(where=_WHERE[self._value], value=now, limit=limit)] if now > limit else []


class LossScale:
    """The loss scale beside its largest of the steps before."""

    name, after, quiet = "loss_scale_collapse", 1, 50
    HALVINGS, STEPS = 6, 100

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=self.STEPS)

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """Compares with the largest scale of the last ``STEPS`` steps."""
        scale = view.values.get("loss_scale", math.nan)
        if not scale > 0:
            return None
        self._recent.append(scale)
        limit = max(self._recent) / 2**self.HALVINGS
        return [Finding(where="backward", value=scale, limit=limit)] if scale <= limit else []


class DataWait:
    """Waiting for data as a share of the step."""

    name, after, quiet = "data_wait", 1, 20
    BEGIN, END, STEPS = 0.25, 0.15, 20

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=self.STEPS)

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """The first steps, in which workers start, leave the window before anything is said."""
        whole = view.values.get("step_time_ms", math.nan)
        if not whole > 0 or view.step <= 5:
            return None
        self._recent.append(view.values["data_wait_ms"] / whole)
        if len(self._recent) < self.STEPS:
            return None
        share, limit = statistics.median(self._recent), self.END if is_active else self.BEGIN
        return [Finding(where="data", value=share, limit=limit)] if share > limit else []


class MemoryCreep:
    """The memory of each rank over the last steps that have samples."""

    name, after, quiet = "memory_creep", 1, 50
    STEPS, SHARE, BYTES = 200, 0.2, 256 * 2**20

    def __init__(self) -> None:
        self._recent: dict[int, tuple[list[int], list[float]]] = {}  # steps, bytes

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """Looks at a rank when a sample of it comes."""
        found = []
        for rank, size in view.memory.items():
            steps, sizes = self._recent.setdefault(rank, ([], []))
            steps.append(view.step)
            sizes.append(size)
            old = bisect_left(steps, view.step - self.STEPS)
            del steps[:old], sizes[:old]
            limit = max(self.SHARE * sizes[0], self.BYTES)
            grown = self._grown(steps, sizes, view.step)
            if grown > limit:
                found.append(Finding(where="resources", value=grown / 2**20, limit=limit / 2**20, rank=rank))
        return found if view.memory else None

    def _grown(self, steps: list[int], sizes: list[float], step: int) -> float:
        """Bytes that were added from the first quarter to the last; 0 unless each has more than the one before."""
        if step <= self.STEPS:
            return 0.0
        borders = [bisect_left(steps, step - self.STEPS * (1 - part / 4)) for part in range(1, 4)]
        parts = [sizes[first:last] for first, last in itertools.pairwise([0, *borders, len(sizes)])]
        if not all(parts):
            return 0.0
        first = last = statistics.median(parts[0])
        for part in parts[1:]:
            before, last = last, statistics.median(part)
            if last <= 1.01 * before:
                return 0.0
        return last - first


class RankDiffers:
    """One replica's value beside the others', by ``GapTest``. ``at_once``, ``lasting``: shares by which a value, or the
    median of several looks, has to lie off the others' to count at all."""

    after, quiet = 1, 10
    LASTING = (5, 20)

    def __init__(
        self, name: str, where: str, read: Callable[[StepView], np.ndarray | None], at_once: float, lasting: float
    ) -> None:
        self.name = name
        self._where, self._read = where, read
        self._test = GapTest({1: math.log1p(at_once), **dict.fromkeys(self.LASTING, math.log1p(lasting))})
        self._values: deque[np.ndarray] = deque(maxlen=MOST + max(self.LASTING))

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """A gap that is large at once, or one that lasts."""
        values = self._read(view)
        if values is None or values.size < 2 or not (np.isfinite(values) & (values > 0)).all():
            return None
        logs = np.log(values)
        others = medians_of_others(logs)
        gaps = logs - others
        beyond = self._test.look(gaps)
        if beyond.any():
            # of two that differ from each other, the one that differs more from where it was going
            expected = _continued(list(self._values), max(self.LASTING)) if self._values else others
            chosen = int(np.argmax(np.where(beyond, np.abs(logs - expected) + np.abs(gaps) / 1e3, -1.0)))
            limit, rank = float(np.exp(others[chosen])), chosen * view.block
            return [Finding(where=self._where, value=float(values[chosen]), limit=limit, rank=rank)]
        if not is_active:
            self._test.accept()
            self._values.append(logs)
        return []


def _continued(before: Sequence[np.ndarray], left_out: int) -> np.ndarray:
    """The straight line through the values before (of each replica), at the step that follows them; without the newest
    ``left_out`` of them, where a fault may be already, if there are enough."""
    kept = before[:-left_out] if len(before) >= left_out + LEAST else before
    if len(kept) < 2:
        return kept[-1]
    slope, level = np.polyfit(np.arange(len(kept)), np.stack(kept), 1)
    return np.asarray(level + slope * len(before))


def replica_losses(view: StepView) -> np.ndarray | None:
    """The loss of each replica."""
    return view.losses


def replica_norms(view: StepView) -> np.ndarray | None:
    """The norm of each replica's own gradient, over the layers that all of them have."""
    layers = view.layers
    if layers is None:
        return None
    local = (layers["scope"] == "local") & (layers["rank"] % view.block == 0)
    if view.block > 1:  # stages have layers of their own: each layer once
        _, first = np.unique(
            np.stack([layers["rank"] // view.block, np.unique(layers["layer"], return_inverse=True)[1]], axis=1)[
                layers["scope"] == "local"
            ],
            axis=0,
            return_index=True,
        )
        local = np.zeros(layers["rank"].size, dtype=bool)
        local[np.flatnonzero(layers["scope"] == "local")[first]] = True
    replica = layers["rank"][local] // view.block
    if not replica.size or np.unique(np.bincount(replica)).size != 1:
        return None
    return np.asarray(np.sqrt(np.bincount(replica, weights=layers["norm"][local] ** 2)))


def robust(values: Sequence[float]) -> tuple[float, float]:
    """Median and robust standard deviation."""
    middle = statistics.median(values)
    return middle, statistics.median(abs(value - middle) for value in values) / MAD_OF_NORMAL
