"""The built-in rules on single layers: gradients, updates, attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import numpy as np

from workbench.core.columns import Columns
from workbench.telemetry.alerts.gap_test import MOST, GapTest, medians_of_others
from workbench.telemetry.alerts.rules import Finding
from workbench.telemetry.alerts.steps import StepView


class _OfLayers(ABC):
    """``_found`` names the layers that are concerned; a layer counts once it is at ``looks`` looks in a row."""

    name = ""
    after, quiet, looks = 1, 3, 3

    def __init__(self) -> None:
        self._looks_in_a_row: dict[str, int] = {}

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        found = self._found(view)
        if found is None:
            return None
        self._looks_in_a_row = {
            str(finding.layer): self._looks_in_a_row.get(str(finding.layer), 0) + 1 for finding in found
        }
        return [finding for finding in found if self._looks_in_a_row[str(finding.layer)] >= self.looks]

    @abstractmethod
    def _found(self, view: StepView) -> list[Finding] | None:
        """The layers that are concerned at this step; None where nothing was looked at."""


def _reduced(view: StepView) -> Columns | None:
    """Rows of whole layers after the reduction, each once."""
    if view.layers is None or view.values.get("skipped"):
        return None
    reduced = np.flatnonzero(view.layers["scope"] == "reduced")
    if not reduced.size:
        return None
    _, first = np.unique(view.layers["layer"][reduced].astype(str), return_index=True)
    return {name: values[reduced[first]] for name, values in view.layers.items()}


class DeadLayer(_OfLayers):
    """Layers without any gradient. Those that are frozen have none at all, and no row."""

    name = "dead_layer"
    ZEROS = 0.999

    def _found(self, view: StepView) -> list[Finding] | None:
        layers = _reduced(view)
        if layers is None or not (layers["norm"] > 0).any():
            return None
        dead = (layers["norm"] == 0) | (layers["zero_fraction"] >= self.ZEROS)
        return [
            Finding(where="backward", value=float(norm), layer=str(layer))
            for layer, norm in zip(layers["layer"][dead], layers["norm"][dead], strict=True)
        ]


class VanishingGradient(_OfLayers):
    """Layers whose gradient is tiny beside that of others."""

    name = "vanishing_gradient"
    looks = 5
    SHARE = 1e-5

    def _found(self, view: StepView) -> list[Finding] | None:
        layers = _reduced(view)
        if layers is None or layers["norm"].size < 2:
            return None
        limit = self.SHARE * float(np.nanmedian(layers["norm"]))
        tiny = (layers["norm"] > 0) & (layers["norm"] < limit)
        return [
            Finding(where="backward", value=float(norm), limit=limit, layer=str(layer))
            for layer, norm in zip(layers["layer"][tiny], layers["norm"][tiny], strict=True)
        ]


class UpdateRatio(_OfLayers):
    """Layers that one update changes by too much, or hardly (``is_low``). The first steps, in which weights that began
    at 0 grow and the rate warms up, are not judged."""

    HIGH, LOW, FROM_STEP = 0.05, 1e-7, 20

    def __init__(self, *, is_low: bool) -> None:
        super().__init__()
        self.name = "update_vanishes" if is_low else "update_ratio"
        self._is_low = is_low
        self.looks = 3 if is_low else 1

    def _found(self, view: StepView) -> list[Finding] | None:
        weights = view.weights
        if weights is None or view.step <= self.FROM_STEP or view.values.get("skipped"):
            return None
        ratio = weights["update_ratio"].astype(float)
        if self._is_low:
            limit = self.LOW
            beyond = (ratio < limit) & (weights["weight_norm"] > 0) & (view.values.get("lr", 0.0) > 0)
        else:
            limit = self.HIGH
            beyond = ratio > limit
        return [
            Finding(where="update", value=float(value), limit=limit, layer=str(layer))
            for layer, value in zip(weights["layer"][beyond], ratio[beyond], strict=True)
        ]


class UpdateDrift:
    """The update of the median layer, relative to its norm, beside the smallest of the steps before. While the rate
    rises from the start of the run (a warm-up) nothing is judged."""

    name, after, quiet = "update_drift", 1, 3
    TIMES, LEAST, STEPS, FROM_STEP = 2.0, 0.01, 50, 25

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque()
        self._rate = -np.inf
        self._warms_up = True

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """Ten times what is usual (0.1 % a step) is the least that counts."""
        rate = view.values.get("lr", np.nan)
        self._warms_up &= not rate <= self._rate
        self._rate = rate if np.isfinite(rate) else self._rate
        if view.weights is None or view.values.get("skipped"):
            return None
        ratios = view.weights["update_ratio"].astype(float)
        ratios = ratios[np.isfinite(ratios)]
        if not ratios.size:
            return None
        value = float(np.median(ratios))
        while self._recent and self._recent[0][0] < view.step - self.STEPS:
            self._recent.popleft()
        usual = min((ratio for _, ratio in self._recent), default=np.inf)
        limit = max(self.TIMES * usual, self.LEAST)
        self._recent.append((view.step, value))
        if self._warms_up or view.step <= self.FROM_STEP:
            self._recent.clear()
            return None
        return [Finding(where="update", value=value, limit=limit)] if value > limit else []


class RankLayerDiffers:
    """Layers whose gradients differ between replicas as they did not before, by ``GapTest``, while others do not: what
    changes all of them is the rank's data, and no fault of a layer. Going backward, the first of them is the origin."""

    name, after, quiet = "rank_layer_differs", 1, 3
    FACTOR, LEAST_LAYERS, LASTING = 5.0, 4, 5

    def __init__(self) -> None:
        self._names: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self._test = GapTest(dict.fromkeys((1, self.LASTING), float(np.log(self.FACTOR))))
        self._usual: deque[np.ndarray] = deque(maxlen=MOST)

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """Of two replicas, the one whose norm has moved more from what was usual."""
        table = _by_replica(view)
        if table is None or table[1].shape[0] < 2 or table[1].shape[1] < self.LEAST_LAYERS:
            return None
        names, logs = table
        if self._names != names.tolist():
            self._names = names.tolist()
            self._begin()
        others = medians_of_others(logs)
        beyond = self._test.look(logs - others)
        if not beyond.any():
            if not is_active:
                self._test.accept()
                self._usual.append(logs)
            return []
        if beyond.any(axis=0).all():
            return []
        usual = np.median(np.stack(self._usual), axis=0) if self._usual else others
        found = []
        for layer in np.flatnonzero(beyond.any(axis=0)):
            moved = np.where(beyond[:, layer], np.abs(logs - usual)[:, layer], -1.0)
            rank = int(moved.argmax())
            value, limit = (float(np.exp(each[rank, layer])) for each in (logs, others))
            place = rank * view.block
            found.append(Finding(where="backward", value=value, limit=limit, rank=place, layer=str(names[layer])))
        return found


def _by_replica(view: StepView) -> tuple[np.ndarray, np.ndarray] | None:
    """Layers, and the logarithm of the norm of each replica's own gradient (replicas, layers), where all have one."""
    if view.layers is None:
        return None
    local = np.flatnonzero((view.layers["scope"] == "local") & (view.layers["norm"] > 0))
    names, layer = np.unique(view.layers["layer"][local].astype(str), return_inverse=True)
    replica = view.layers["rank"][local] // view.block
    if not local.size:
        return None
    norms = np.full((int(replica.max()) + 1, names.size), np.nan)
    norms[replica, layer] = np.log(view.layers["norm"][local])
    known = np.isfinite(norms).all(axis=0)
    return names[known], norms[:, known]


class ExplodingLogits(_OfLayers):
    """The largest logit of attention, where it is watched."""

    name = "exploding_logits"
    LIMIT = 50.0

    def _found(self, view: StepView) -> list[Finding] | None:
        rows = view.attention
        if rows is None:
            return None
        beyond = np.flatnonzero(rows["max_logit"] > self.LIMIT)
        largest: dict[str, int] = {}
        for row in beyond:
            layer = str(rows["layer"][row])
            if layer not in largest or rows["max_logit"][row] > rows["max_logit"][largest[layer]]:
                largest[layer] = int(row)
        return [
            Finding(
                where="forward",
                value=float(rows["max_logit"][row]),
                limit=self.LIMIT,
                rank=int(rows["rank"][row]),
                micro_batch=int(rows["micro_batch"][row]),
                layer=layer,
            )
            for layer, row in largest.items()
        ]
