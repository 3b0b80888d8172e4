"""What limits a run, in a sentence: pure functions from columns to a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.core.columns import Columns
from workbench.core.mesh import Mesh
from workbench.core.numbers import milliseconds
from workbench.telemetry.phases import COMPUTE, DATA, by_phase, own_time, skew_ms
from workbench.telemetry.stragglers import SIGNIFICANCE, Straggler, find_straggler

#: steps at the beginning that say nothing: caches are cold, buckets and shapes are agreed
WARM_UP = 3
#: with fewer steps after those there is no verdict: one hiccup would make it
ENOUGH = 5
#: steps that are judged, by the panel, the report and ``Run.verdict`` alike: the newest whose phases were recorded
WINDOW = 50
#: of the steps whose collectives were recorded, so many: the newest, and no verdict on the network from a single one
RECORDED, ENOUGH_RECORDED = 20, 2
_WHAT = {"data": "its data", "transfer": "copying to the device", "communication": "its network"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What limits a run. ``sentence`` says it, or why nothing can be said; shares are of the step time, at most 1.
    ``steps``: the first and the last step that were judged, ``count`` how many of those between.

    ``bound``: "data", "compute", "communication" or "bubble", the largest of the shares on the rank that the others
    wait for (on average over ranks without one); "" when nothing is known. ``communication_share``: exposed
    communication, averaged over ranks, of which ``waiting_share`` is waiting for slower ranks: what the ranks wait
    longer than the one that waits least. ``skew_ms``: slowest minus fastest rank's own time, averaged over steps.
    """

    sentence: str
    bound: str = ""
    steps: tuple[int, int] = (0, 0)
    count: int = 0
    step_ms: float = math.nan
    compute_share: float = math.nan
    data_share: float = math.nan
    communication_share: float = math.nan
    bubble_share: float = math.nan
    waiting_share: float = math.nan
    overlapped_share: float = math.nan
    skew_ms: float = math.nan
    straggler: Straggler | None = None
    per_rank: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def window(self) -> str:
        """The steps that were judged, in words; "" without a verdict."""
        if not self.count:
            return ""
        first, last = self.steps
        measured = "steps" if self.count == last - first + 1 else f"{self.count} measured steps of"
        return f"{measured} {first} to {last}"

    def __str__(self) -> str:
        return self.sentence

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """A notebook's output shows the sentence; ``repr`` has the numbers."""
        printer.text(self.sentence)


def verdict(phases: Columns, mesh: Mesh, posted: pd.Series | None = None, *, window: int = WINDOW) -> Verdict:
    """Judge the newest ``window`` steps that all ranks finished, without the first ``WARM_UP`` of those given.

    ``posted``: ``phases.posting_time`` of the collectives; without it a slow network shows in no rank.
    """
    table = _finished(by_phase(phases), mesh)
    steps = table.index.unique("step").sort_values()
    judged_steps = steps[WARM_UP:][-window:]
    if len(judged_steps) < ENOUGH:
        return Verdict(sentence=_not_yet(len(steps)))
    table = table[table.index.get_level_values("step").isin(judged_steps)]
    per_rank = table.groupby(level="rank").mean()
    totals = per_rank.sum(axis=1)
    step_ms = float(totals.mean())
    waits = per_rank["communication"] + per_rank["bubble"]
    slow = find_straggler(own_time(table), _newest(posted, mesh), totals, waits)
    judged = per_rank.loc[slow.rank] if slow else per_rank.mean()
    shares = _shares(judged, slow)
    mean = _shares(per_rank.mean(), None)
    found = Verdict(
        sentence="",
        bound=max(shares, key=lambda name: shares[name]),
        steps=(int(judged_steps[0]), int(judged_steps[-1])),
        count=len(judged_steps),
        step_ms=step_ms,
        compute_share=mean["compute"],
        data_share=mean["data"],
        communication_share=mean["communication"],
        bubble_share=mean["bubble"],
        waiting_share=float(waits.mean() - waits.min()) / step_ms,
        overlapped_share=_overlapped_share(phases, table),
        skew_ms=float(skew_ms(own_time(table)).mean()),
        straggler=slow,
        per_rank=per_rank.to_dict("index"),  # type: ignore[arg-type]
    )
    return _with_sentence(found, shares, mesh)


def _finished(table: pd.DataFrame, mesh: Mesh) -> pd.DataFrame:
    """Steps that every rank came to the end of: one in which a run fails may have lasted for any time."""
    ended = table["optimizer"] > 0
    ranks = ended.groupby(level="step").sum()
    return table[table.index.get_level_values("step").isin(ranks.index[ranks == mesh.world_size])]


def _not_yet(steps: int) -> str:
    return f"Verdict after {WARM_UP + ENOUGH} measured steps ({steps} so far)."


def _newest(posted: pd.Series | None, mesh: Mesh) -> pd.DataFrame | None:
    """Collectives are recorded rarely, so the newest steps that were may lie before those that are judged. The first
    step says nothing: connections are made in it."""
    if posted is None:
        return None
    ranks = posted.groupby(level="step").size()
    steps = ranks.index[(ranks == mesh.world_size) & (ranks.index > 1)].sort_values()[-RECORDED:]
    if len(steps) < ENOUGH_RECORDED:
        return None
    return posted[posted.index.get_level_values("step").isin(steps)].to_frame("communication")


def _shares(phases: pd.Series, slow: Straggler | None) -> dict[str, float]:
    """Shares of a step by what it is spent on. On a rank whose network is slow its own handing over counts as
    communication wherever it happens, in a pipeline's bubble too."""
    total = float(phases.sum())
    handing_ms = min(slow.lost_ms, float(phases["bubble"])) if slow and slow.phase == "communication" else 0.0
    spent = {
        "compute": float(phases[list(COMPUTE)].sum()),
        "data": float(phases[list(DATA)].sum()),
        "communication": float(phases["communication"]) + handing_ms,
        "bubble": float(phases["bubble"]) - handing_ms,
    }
    return {name: ms / total for name, ms in spent.items()}


def _overlapped_share(phases: Columns, table: pd.DataFrame) -> float:
    """Communication that compute hid, of the steps in which it was measured."""
    hidden = phases["phase"] == "overlapped"
    if not hidden.any():
        return 0.0
    frame = pd.DataFrame({name: phases[name][hidden] for name in ("step", "rank", "duration_ms")})
    totals = frame.groupby(["step", "rank"])["duration_ms"].sum()
    totals = totals[totals.index.isin(table.index)]
    return float(totals.sum() / table.loc[totals.index].to_numpy().sum()) if len(totals) else 0.0


_BOUND = {
    "compute": "Compute-bound: {compute} of a {step} step computes",
    "data": "Data-bound: {data} of a {step} step waits for data",
    "communication": "Communication-bound: {communication} of a {step} step communicates",
    "bubble": "Bound by the pipeline: {bubble} of a {step} step waits for a neighbouring stage",
}
_OTHERS = {
    "compute": "{compute} computes",
    "communication": "{communication} communicates",
    "bubble": "{bubble} is pipeline bubble",
    "data": "{data} waits for data",
}


def _with_sentence(found: Verdict, shares: dict[str, float], mesh: Mesh) -> Verdict:
    words = {name: f"{share:.0%}" for name, share in shares.items()} | {"step": milliseconds(found.step_ms)}
    others = [
        text.format(**words)
        for name, text in _OTHERS.items()
        if name != found.bound and (name == "compute" or shares[name] >= 0.005)
    ]
    slow = found.straggler
    where = f" on rank {slow.rank}, for which the others wait" if slow else ""
    text = _BOUND[found.bound].format(**words) + where + (f"; {', '.join(others)}." if others else ".")
    if slow is not None:
        in_what = _WHAT.get(slow.phase, slow.phase)
        text += (
            f" Rank {slow.rank} is slow in {in_what}: {milliseconds(slow.lost_ms)} per step, "
            f"{slow.lost_share:.0%} of the step time, is lost to it (p < {SIGNIFICANCE:g})."
        )
        if mesh.pp > 1:
            text += f" It is pipeline stage {mesh.coordinates(slow.rank).pp} of {mesh.pp}, which may have more work."
    elif mesh.world_size > 1:
        text += f" No rank stands out: they differ by {milliseconds(found.skew_ms)} per step."
        if found.bound == "communication":
            text += " (What is slow within a collective, such as one rank's link, holds up all alike.)"
    text += f" ({found.window[:1].upper()}{found.window[1:]}.)"
    return Verdict(**{**{name: getattr(found, name) for name in found.__dataclass_fields__}, "sentence": text})
