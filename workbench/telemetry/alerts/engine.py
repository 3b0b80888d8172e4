"""Alerts of a run: rules on what its store holds, step by step. Live or read later, the same rows give the same alerts.

A rule says at each step what it finds. An alert begins when a rule has found something often enough in a row, and ends
when it has found nothing for as long as it says: one begin and one end for each time, whatever happens between. Alerts
that begin at one step are in the order of the computation, so that the origin stands first: data, forward (modules in
the order of the model), loss, backward (the other way round), reduction, update; within that by rank and micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.core.records import EventKind
from workbench.core.rules.expressions import Expression
from workbench.errors import ConfigError
from workbench.events.alerts import BEGINS, ENDS, MOST_LAYERS, PASSES, Alert
from workbench.events.decode import as_mapping, as_number
from workbench.telemetry.alerts.layer_rules import (
    DeadLayer,
    ExplodingLogits,
    RankLayerDiffers,
    UpdateRatio,
    VanishingGradient,
)
from workbench.telemetry.alerts.rules import (
    DataWait,
    Drift,
    Finding,
    FromEvents,
    LossScale,
    MemoryCreep,
    RankDiffers,
    Rule,
    replica_losses,
    replica_norms,
)
from workbench.telemetry.alerts.steps import StepReader, StepView, last_whole_step
from workbench.telemetry.spikes import LEAST_SHARE
from workbench.telemetry.store import Store

#: an alert of one name begins at most so often in a run; the log keeps the rows, so nothing is lost
MOST = 100

Condition = Callable[[Mapping[str, float]], object]


def built_in() -> list[Rule]:
    """New rules, one of each."""
    return [
        FromEvents("nonfinite", EventKind.NONFINITE),
        FromEvents("loss_spike", EventKind.SPIKE, "loss"),
        FromEvents("grad_norm_spike", EventKind.SPIKE, "grad_norm"),
        Drift("loss_drift", "loss", share=0.05, deviations=2.0, end_share=0.02),
        Drift("grad_norm_drift", "grad_norm", share=1.0, deviations=2.0, end_share=0.5),
        DeadLayer(),
        VanishingGradient(),
        ExplodingLogits(),
        UpdateRatio(is_low=False),
        UpdateRatio(is_low=True),
        RankDiffers(
            "rank_loss_differs", "loss", replica_losses, at_once=LEAST_SHARE["loss"], lasting=LEAST_SHARE["loss"]
        ),
        RankDiffers("rank_gradient_differs", "backward", replica_norms, at_once=2.0, lasting=0.5),
        RankLayerDiffers(),
        LossScale(),
        DataWait(),
        MemoryCreep(),
    ]


class OwnRule:
    """A rule of the user's own: an expression, or a function of a step's values. ``missing``: names of what the script
    is to log and has not logged yet; ``looks``: steps at which the rule was there."""

    quiet = 1

    def __init__(
        self, name: str, condition: Condition, *, text: str, after: int = 1, logged: Collection[str] = ()
    ) -> None:
        self.name, self.text, self.after = name, text, after
        self.missing = set(logged)
        self.looks = 0
        self._condition = condition
        self._logged = frozenset(logged)

    def look(self, view: StepView, *, is_active: bool) -> Sequence[Finding] | None:
        """Asks the condition of a step that was logged; one on logged values where one of them was logged."""
        if not view.values:
            return None
        self.looks += 1
        self.missing -= view.logged
        if self._logged and not self._logged & view.logged:
            return None
        return [Finding(where="resources")] if self._condition(view.values) else []


class _State:
    """Whether an alert of a rule is on."""

    def __init__(self, rule: Rule | OwnRule) -> None:
        self.rule = rule
        self.since = 0
        self.begun = self._found = self._quiet = 0

    def look(self, view: StepView) -> Iterator[Alert]:
        found = self.rule.look(view, is_active=self.since > 0)
        if found is None:
            return
        self._found, self._quiet = (self._found + 1, 0) if found else (0, self._quiet + 1)
        if found and not self.since and self._found >= self.rule.after:
            self.since = view.step
            self.begun += 1
            if self.begun <= MOST:
                yield self._begin(view, list(found))
        elif self.since and self._quiet >= self.rule.quiet:
            since, self.since = self.since, 0
            if self.begun <= MOST:
                yield replace(self._alert(view, ENDS), since=since)

    def _begin(self, view: StepView, found: list[Finding]) -> Alert:
        found.sort(key=lambda finding: _place(finding, view.places))
        first = found[0]
        layers = list(dict.fromkeys(finding.layer for finding in found if finding.layer is not None))
        return replace(
            self._alert(view, BEGINS),
            **{name: getattr(first, name) for name in ("value", "limit", "where", "rank", "micro_batch", "event")},
            layers=tuple(layers[:MOST_LAYERS]),
            count=len(layers),
        )

    def _alert(self, view: StepView, state: str) -> Alert:
        own = isinstance(self.rule, OwnRule)
        text = self.rule.text if isinstance(self.rule, OwnRule) else ""
        return Alert(time=view.time, step=view.step, name=self.rule.name, state=state, text=text, is_own=own)


def _place(finding: Finding | Alert, places: Mapping[str, int]) -> tuple[float, ...]:
    """Where in the computation of a step something is, as a number that grows with it."""
    layer = finding.layer if isinstance(finding, Finding) else (finding.layers[0] if finding.layers else None)
    module = -math.inf if layer is None else places.get(layer, len(places))
    if finding.where == "backward" and layer is not None:
        module = -module
    stage = PASSES.index(finding.where) if finding.where in PASSES else len(PASSES)
    return (stage, finding.rank if finding.rank >= 0 else math.inf, finding.micro_batch, module)


class AlertEngine:
    """Finds the alerts of one run. ``own``: conditions of the user's that are functions, by name; those that are texts
    stand in the run's events. ``failed``: told of a condition that raised, which is asked no more. ``missing``: told of
    an alert whose condition has names that nothing logs."""

    def __init__(
        self,
        store: Store,
        own: Mapping[str, Condition] | None = None,
        failed: Callable[[str, Exception], object] | None = None,
        missing: Callable[[str, list[str], int], object] | None = None,
    ) -> None:
        self.store = store
        self._own = dict(own or {})
        self._failed, self._missing = failed, missing
        self._reader = StepReader(store, all_logged=bool(own))
        self._states = [_State(rule) for rule in built_in()]

    def look(self, limit: int) -> list[Alert]:
        """The alerts of the steps up to ``limit`` that were not looked at before, in order."""
        return [alert for view in self._reader.read(limit) for alert in self._look(view)]

    def tell_missing(self, least: int = 1) -> None:
        """Tell which alerts wait for values that were not logged in the first ``least`` steps or more."""
        for state in self._states:
            rule = state.rule
            if isinstance(rule, OwnRule) and rule.missing and rule.looks >= least and self._missing is not None:
                self._missing(rule.name, sorted(rule.missing), rule.looks)
                rule.missing = set()

    def _look(self, view: StepView) -> Iterable[Alert]:
        found: list[Alert] = []
        for state in list(self._states):
            try:
                found += state.look(view)
            except Exception as error:
                if not isinstance(state.rule, OwnRule):
                    raise
                self._states.remove(state)
                if self._failed is not None:
                    self._failed(state.rule.name, error)
        ends = [alert for alert in found if alert.state == ENDS]
        begins = sorted(
            (alert for alert in found if alert.state == BEGINS), key=lambda alert: _place(alert, view.places)
        )
        self._take_declared(view)
        return [*ends, *(replace(alert, order=order) for order, alert in enumerate(begins))]

    def _take_declared(self, view: StepView) -> None:
        """Rules that the cell or somebody who looks on has set up hold from the next step on."""
        for event in view.events:
            if event.kind == EventKind.CONTROL and event.name == "alert" and event.rank == 0:
                rule = self._declared(as_mapping(event.value))
                if rule is not None:
                    self._states = [
                        each
                        for each in self._states
                        if not (isinstance(each.rule, OwnRule) and each.rule.name == rule.name)
                    ]
                    self._states.append(_State(rule))

    def _declared(self, told: dict[str, Any]) -> OwnRule | None:
        name, when = str(told.get("name")), told.get("when")
        after = as_number(told.get("after", 1))
        text = str(told.get("text") or when)
        condition = self._own.get(name) if told.get("is_function") is True else None
        logged: list[str] = []
        if condition is None:
            try:
                expression = Expression(when if isinstance(when, str) else "")
            except ConfigError:  # a function of a process that is gone, or a log of anybody's
                return None
            condition, logged = expression.holds, expression.logged
        return OwnRule(name, condition, text=text, after=int(after) if 1 <= after < 2**31 else 1, logged=logged)


def find_alerts(run: str | Path, own: Mapping[str, Condition] | None = None) -> list[Alert]:
    """The alerts of a whole run, found anew from its logs."""
    store = Store(run, spare=True)
    store.refresh()
    return AlertEngine(store, own).look(last_whole_step(store, over=True))
