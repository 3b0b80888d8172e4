"""What alerts say: the built-in rules in words, and alerts as events of kind ``alert``.

What finds them is in ``workbench.telemetry.alerts``; panel, report, ``Run.alerts`` and ``--notify`` take their words
from here.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.core.columns import Columns
from workbench.core.numbers import number
from workbench.core.records import Event, EventKind
from workbench.events.decode import DecodedEvent, as_mapping, as_number, of_kind

if TYPE_CHECKING:
    import pandas as pd

BEGINS, ENDS = "begins", "ends"
#: layers that an alert names; further ones are counted
MOST_LAYERS = 5
#: where in a step something is computed, in that order
PASSES = ("data", "forward", "loss", "mean loss", "backward", "reduction", "update", "resources")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWords:
    """A rule in words: what it is called, when it fires, what that means and what to do.

    ``beside``: what the limit of its alerts is.
    """

    title: str
    fires: str
    meaning: str
    advice: str
    unit: str = ""
    beside: str = "limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert, at its begin or its end.

    ``time`` and ``step``: those of the training step. ``value`` went over ``limit`` (under it, of rules that watch for
    small values). ``where``: one of ``PASSES``. ``rank`` and ``micro_batch``: -1 where it is of all. ``layers``: those
    concerned, in the order of the computation, at most ``MOST_LAYERS`` of ``count``. ``order``: its place among the
    alerts that began in the same step, 0 for what came first in the computation. ``event``: kind and name of the event
    that tells the same ("": none). ``since``: of an end, the step of the begin. ``text``: the user's own words.
    """

    time: float
    step: int
    name: str
    state: str
    value: float = math.nan
    limit: float = math.nan
    where: str = ""
    rank: int = -1
    micro_batch: int = -1
    layers: tuple[str, ...] = ()
    count: int = 0
    order: int = 0
    event: str = ""
    since: int = 0
    text: str = ""
    is_own: bool = field(default=False)

    def to_event(self) -> Event:
        """The record of rank 0's log."""
        told = {name: value for name, value in asdict(self).items() if name not in ("time", "step", "name")}
        told |= {name: None for name in ("value", "limit") if not math.isfinite(told[name])}
        return Event(
            time=self.time, step=self.step, rank=0, kind=EventKind.ALERT, name=self.name,
            value=json.dumps(told),
        )  # fmt: skip

    @classmethod
    def from_event(cls, event: DecodedEvent) -> Alert:
        """The alert of an event; what is malformed reads as nothing."""
        return cls.from_value(event.name, event.value, time=event.time, step=event.step)

    @classmethod
    def from_value(cls, name: str, value: Any, *, time: float = math.nan, step: int = 0) -> Alert:
        """The alert of the decoded value of an event."""
        told = as_mapping(value)
        layers = told.get("layers")
        whole: dict[str, Any] = {
            key: int(found) if abs(found := as_number(told.get(key))) < 2**53 else default
            for key, default in (("rank", -1), ("micro_batch", -1), ("count", 0), ("order", 0), ("since", 0))
        }
        return cls(
            time=time,
            step=step,
            name=name,
            state=ENDS if told.get("state") == ENDS else BEGINS,
            value=as_number(told.get("value")),
            limit=as_number(told.get("limit")),
            layers=tuple(map(str, layers)) if isinstance(layers, list) else (),
            is_own=told.get("is_own") is True,
            where=str(told.get("where") or ""),
            event=str(told.get("event") or ""),
            text=str(told.get("text") or ""),
            **whole,
        )

    @property
    def words(self) -> RuleWords | None:
        """The built-in rule in words; None for an alert of the user's own."""
        return None if self.is_own else RULES.get(self.name)

    @property
    def title(self) -> str:
        """What people call it."""
        return self.words.title if self.words is not None else self.name

    def sentence(self) -> str:
        """What happened, with the values, in a line."""
        if self.state == ENDS:
            return f"{self.title}: ended; it began at step {self.since}"
        if self.words is None:
            return f"{self.title}: {self.text}"
        place = self._place()
        limit = f" ({self.words.beside} {self._number(self.limit)})" if math.isfinite(self.limit) else ""
        measured = f" {self._number(self.value)}{limit}" if math.isfinite(self.value) else ""
        return f"{self.title}:{measured}{place}"

    def explanation(self) -> str:
        """What it means and what to do."""
        return f"{self.words.meaning} {self.words.advice}" if self.words is not None else self.text

    def _place(self) -> str:
        parts = [f"rank {self.rank}"] if self.rank >= 0 else []
        parts += [f"micro-batch {self.micro_batch}"] if self.micro_batch >= 0 else []
        if self.layers:
            more = self.count - 1
            parts.append(f"{self.layers[0] or 'the model itself'}{f' and {more} more' if more > 0 else ''}")
        return f", {', '.join(parts)}" if parts else ""

    def _number(self, value: float) -> str:
        unit = self.words.unit if self.words is not None else ""
        return f"{100 * value:.3g} %" if unit == "%" else f"{number(value)} {unit}".rstrip()

    def message(self, run: str) -> dict[str, Any]:
        """What ``--notify`` is given, as JSON values."""
        told = {"run": run, "step": self.step, "time": self.time, "alert": self.name, "text": self.sentence()}
        told |= {"explanation": self.explanation(), "fires": self.words.fires if self.words else self.text}
        places = {"where": self.where, "rank": self.rank, "micro_batch": self.micro_batch, "layers": list(self.layers)}
        numbers = {"value": self.value, "limit": self.limit}
        return told | places | {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def alerts_of(events: Columns) -> list[Alert]:
    """The alerts among rows of the ``events`` table, by step and, of one step, in the order of the computation."""
    found = [Alert.from_event(event) for event in of_kind(events, EventKind.ALERT)]
    return sorted(found, key=lambda alert: (alert.step, alert.state == BEGINS, alert.order))


def active(alerts: list[Alert]) -> list[Alert]:
    """Those that began and have not ended, newest step last."""
    now: dict[str, Alert] = {}
    for alert in alerts:
        if alert.state == ENDS:
            now.pop(alert.name, None)
        else:
            now[alert.name] = alert
    return list(now.values())


def table_of(alerts: list[Alert]) -> pd.DataFrame:
    """One row per alert, with its end."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    began: dict[tuple[str, int], dict[str, Any]] = {}
    for alert in alerts:
        if alert.state == ENDS:
            if (alert.name, alert.since) in began:
                began[alert.name, alert.since]["ended"] = alert.step
            continue
        row = {"step": alert.step, "name": alert.name, "text": alert.sentence(), "rank": alert.rank}
        row |= {"layer": ", ".join(alert.layers), "value": alert.value, "limit": alert.limit, "where": alert.where}
        row |= {"order": alert.order, "ended": 0, "explanation": alert.explanation()}
        began[alert.name, alert.step] = row
        rows.append(row)
    columns = ["step", "name", "text", "rank", "layer", "value", "limit", "where", "order", "ended", "explanation"]
    return pd.DataFrame(rows, columns=columns)


RULES: dict[str, RuleWords] = {
    "nonfinite": RuleWords(
        title="non-finite value",
        fires="the loss or a gradient is NaN or infinite",
        meaning="A number overflowed, or an operation is undefined, such as 0/0.",
        advice="The event \"non-finite\" names the module; %dist_replay runs the step again.",
    ),
    "loss_spike": RuleWords(
        title="loss spike",
        fires="after step 25, the loss lies 8 robust standard deviations and 10 % above the median of the 50 before",
        meaning="One batch or one update went wrong.",
        advice="If the loss does not recover, roll back (%dist_rollback), halve the learning rate (%dist_set lr=x0.5).",
    ),
    "grad_norm_spike": RuleWords(
        title="gradient norm spike",
        fires="after step 25, the norm is 3 times the median of the 50 before and 8 robust standard deviations above",
        meaning="One batch has a far larger gradient than others, so one update may undo many.",
        advice="Clip the gradient (%dist_set clip=...), and look at that step's batch and layers.",
    ),
    "loss_drift": RuleWords(
        title="loss drifts up",
        fires="the median loss of 10 steps lies 5 % and twice its noise above the lowest such median of the 50 before",
        meaning="The model is getting worse on its training data.",
        advice="Lower the learning rate (%dist_set lr=x0.5), or roll back to a checkpoint (%dist_rollback STEP).",
    ),
    "grad_norm_drift": RuleWords(
        title="gradient norm drifts up",
        fires="the median norm of 10 steps is twice the lowest such median of the 50 before",
        meaning="The weights move into a region where the loss is steep; the loss often follows.",
        advice="Lower the learning rate (%dist_set lr=x0.5), or clip the gradient (%dist_set clip=...).",
    ),
    "dead_layer": RuleWords(
        title="dead layer",
        fires="the gradient of a layer is exactly 0, or 99.9 % of its elements are, in 3 measurements in a row",
        meaning="The layer learns nothing: dead units, a cut graph, or an input that is always 0.",
        advice="Look at its activation function and initialisation, and at detach() or no_grad() before it.",
    ),
    "vanishing_gradient": RuleWords(
        title="vanishing gradient",
        fires="the norm of a layer's gradient is below 1e-5 of the median layer's, in 5 measurements in a row",
        meaning="The loss hardly reaches this layer: products of small factors, or saturated units.",
        advice="Look at its initialisation, at normalisation and residual connections around it.",
    ),
    "exploding_logits": RuleWords(
        title="exploding logits",
        fires="the largest logit of attention exceeds 50 in 3 measurements in a row",
        meaning="Softmax saturates: each query attends to one key only, and low precision loses the differences.",
        advice="Normalise queries and keys, lower the learning rate, or compute attention in a wider format.",
    ),
    "update_ratio": RuleWords(
        title="update too large",
        fires="after step 20, one update changes a layer by more than 5 % of its norm",
        meaning="The learning rate is too high for this layer: about 0.1 % a step is usual.",
        advice="Lower the learning rate (%dist_set lr=x0.5), or warm up for longer.",
        unit="%",
    ),
    "update_vanishes": RuleWords(
        title="update too small",
        fires="with lr above 0, one update changes a layer by less than 1e-7 of its norm, in 3 measurements in a row",
        meaning="The layer hardly changes: its update is lost in rounding, or the learning rate is far too low.",
        advice="Raise the learning rate, or keep fp32 master weights.",
    ),
    "update_drift": RuleWords(
        title="updates grow",
        fires="after warm-up and step 25, the median layer's update is twice the smallest of 50 steps, and above 1 %",
        meaning="After warm-up, updates should not grow: the learning rate rises, or the gradients do.",
        advice="Look at the learning rate and its schedule; lower it (%dist_set lr=x0.5).",
        unit="%",
    ),
    "rank_loss_differs": RuleWords(
        title="a rank's loss differs",
        beside="others",
        fires="a replica's loss, in 1, 5 or 20 measurements, differs from the others' by 10 % and by more than chance",
        meaning="Its share of the batch is unlike the others': corrupted or misread data, or a faulty device.",
        advice="Look at that rank's batch, and at its gradient beside those of the others (tab Gradients).",
    ),
    "rank_gradient_differs": RuleWords(
        title="a rank's gradient differs",
        beside="others",
        fires="a replica's norm differs from the others' 3-fold, or 1.5-fold in 5 or 20 measurements, beyond chance",
        meaning="This rank distorts the averaged gradient: a corrupted batch or gradient.",
        advice="Look at that rank's data and device; the tab Gradients has its layers.",
    ),
    "rank_layer_differs": RuleWords(
        title="a layer differs on a rank",
        beside="others",
        fires="a layer's norm differs between replicas 5-fold, in 1 or 5 measurements, and beyond chance",
        meaning="Something changes this layer's gradient on one rank alone: a hook, a kernel, a faulty device.",
        advice="Compare the layer on that rank with the others; move the rank to another device.",
    ),
    "loss_scale_collapse": RuleWords(
        title="loss scale collapses",
        fires="the loss scale has halved 6 times within 100 steps",
        meaning="fp16 gradients overflow again and again: steps are skipped, small gradients become 0.",
        advice="Look for the layer whose gradient overflows, lower the rate, or use bf16.",
    ),
    "data_wait": RuleWords(
        title="waits for data",
        fires="the median of 20 steps waits for data for more than 25 % of the step (ends below 15 %)",
        meaning="The devices are idle while batches are read.",
        advice="More workers or a faster dataset; Run.verdict() has the shares.",
        unit="%",
    ),
    "memory_creep": RuleWords(
        title="memory creeps up",
        fires="a rank's memory grew in each quarter of the last 200 steps, by 20 % and 256 MiB in all",
        meaning="Memory of each step is not freed: a list of losses with their graphs, or a cache without a bound.",
        advice="Store loss.item() or loss.detach(); look for lists that grow in the cell or the dataset.",
        unit="MiB",
    ),
}  # fmt: skip
