"""What a step of a run cost, as measured, and how long it is predicted to take on another network with other ranks.

The alpha-beta model (Hockney 1994) of ring algorithms, as ``core.network.messages``: compute is as it was measured,
with as many samples on each rank, and so is the time that encoding takes. What goes on beside the backward pass is sent
in equal parts, each when its share of that pass is over, one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.core import algorithms
from workbench.core.network import Network

if TYPE_CHECKING:
    import pandas as pd

    from workbench.run.run import Run

#: steps that pay for what is paid once
_FIRST = 3
#: kinds of which the bytes that are counted grow with the ranks
_GATHERED = ("all_gather",)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Collectives of one kind in a step of one rank, on average: how many, and their ``bytes``, counted as
    ``CollectiveRecord.bytes``. ``beside_backward``: they go on while the backward pass does."""

    kind: str
    calls: float
    bytes: float
    beside_backward: bool = False


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A step on ``ranks`` ranks. ``compute_s``: all of it but waiting for messages, of which ``backward_s`` is the
    backward pass."""

    ranks: int
    compute_s: float
    backward_s: float
    sent: tuple[Sent, ...]

    def step_s(self, network: Network, ranks: int | None = None) -> float:
        """The predicted time of a step on this network, with so many ranks (None: as many)."""
        size = ranks or self.ranks
        waits = sum(self._wait_s(each, network, size) for each in self.sent)
        return self.compute_s + waits

    def _wait_s(self, sent: Sent, network: Network, size: int) -> float:
        slowed = network.slowed(range(size))
        bytes_ = sent.bytes * size / self.ranks if sent.kind in _GATHERED else sent.bytes
        transfer_s = slowed * network.transfer_s(sent.kind, size, bytes_)
        latency_s = slowed * network.wait_s(sent.kind, size)
        if not sent.beside_backward:
            return transfer_s + sent.calls * latency_s
        parts = max(1, round(sent.calls))
        over_s = 0.0
        for part in range(1, parts + 1):
            over_s = max(over_s, self.backward_s * part / parts) + transfer_s / parts
        return over_s + latency_s - self.backward_s


def read_cost(run: Run) -> StepCost | None:
    """The cost of a run's steps, from its log; None where that does not tell."""
    phases, collectives, metrics = run.phases(), run.collectives(), run.metrics()
    steps = metrics[metrics["step"] > _FIRST]
    if phases.empty or steps.empty:
        return None
    phases = phases[phases["step"] > _FIRST]
    waits = phases[phases["phase"] == "communication"].groupby(["step", "rank"])["duration_ms"].sum()
    # the rank that waits least waits for messages, the others for it too
    waited_ms = waits.groupby("step").min().reindex(phases["step"].unique(), fill_value=0.0)
    computed_ms = (steps.set_index("step")["step_time_ms"] - waited_ms).dropna()
    backward_ms = phases[phases["phase"] == "backward"].groupby(["step", "rank"])["duration_ms"].sum()
    if computed_ms.empty:
        return None
    return StepCost(
        ranks=run.plan.mesh.dp,
        compute_s=float(computed_ms.median()) / 1e3,
        backward_s=0.0 if backward_ms.empty else float(backward_ms.median()) / 1e3,
        sent=tuple(_sent(run, collectives, int(metrics["step"].max()))),
    )


def _sent(run: Run, collectives: pd.DataFrame, last: int) -> list[Sent]:
    own = collectives[collectives["rank"] == 0]
    name = run.plan.algorithm
    if algorithms.is_local(name):  # all steps with an exchange are recorded
        first = algorithms.steps_alone_after(name)
        alone = own[own["step"] > first]
        steps = max(1.0, last - first)
        return [
            Sent(kind=str(kind), calls=len(rows) / steps, bytes=float(rows["bytes"].sum()) / steps)
            for kind, rows in alone.groupby("kind")
        ]
    later = own[own["step"] > _FIRST]
    steps = later["step"].nunique()
    chosen = algorithms.chosen(name) if name else None
    kind_of_gradients = "all_reduce" if chosen is None else chosen.algorithm.collective
    is_beside = chosen is None or chosen.algorithm.rounds == 1
    return [
        Sent(
            kind=str(kind),
            calls=len(rows) / steps,
            bytes=float(rows["bytes"].sum()) / steps,
            beside_backward=is_beside and kind == kind_of_gradients,
        )
        for kind, rows in later.groupby("kind")
    ]


def crossover(
    one: tuple[StepCost, float], other: tuple[StepCost, float], latency_s: float, rates: tuple[float, float]
) -> float:
    """The rate, in bits per second, below which ``one`` is predicted to need less time than ``other``: each a cost and
    the number of its steps. 0: at no rate of these bounds; infinite: at any."""

    def gain(rate: float) -> float:
        network = Network(bits_per_s=rate, latency_s=latency_s)
        return one[1] * one[0].step_s(network) - other[1] * other[0].step_s(network)

    low, high = rates
    if gain(low) >= 0:
        return 0.0
    if gain(high) < 0:
        return math.inf
    while high / low > 1 + 1e-3:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gain(middle) < 0 else (low, middle)
    return low
