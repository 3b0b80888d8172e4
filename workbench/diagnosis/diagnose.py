"""The verdict: what keeps ranks from going on, in a sentence, from what can be seen of each. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from workbench.core.live.rank_row import DEBUGGER, IDLE, PAUSED
from workbench.core.mesh import Mesh
from workbench.core.numbers import seconds
from workbench.diagnosis.causes import Cause, Reason, reason_of
from workbench.diagnosis.diagnosis import Diagnosis, RankState
from workbench.diagnosis.view import RankView
from workbench.diagnosis.waits import Wait, cannot_come, cycle_in, waits_of
from workbench.errors import format_ranks

_DIFFER = "call the same collectives, with tensors of one size, in the same order on all ranks of the group"
_ORDER = "call the collectives of both groups in the same order on all ranks"
_PAIR = "post a receive for each message that is sent, and send each that is received"
_FIRST = "let one of them receive first, or post both with isend and irecv before either waits"


def diagnose(views: Sequence[RankView], mesh: Mesh | None = None) -> Diagnosis:
    """Tells why ranks do not go on. ``mesh``: of the training, whose axes name its groups."""
    waits = waits_of(views, mesh)
    by_rank = {view.rank: view for view in views}
    found = (
        _differing(waits)
        or _crossed(waits)
        or _in_debugger(waits, views)
        or _missing(waits, by_rank)
        or _gone(views)
        or _transferring(waits)
        or _going_on(views)
    )
    cause, sentence, missing, advice = found
    return Diagnosis(
        cause=cause,
        sentence=sentence,
        missing=tuple(missing),
        waiting=tuple(sorted(waits)),
        advice=advice,
        ranks=tuple(_state_of(view, waits.get(view.rank)) for view in views),
    )


_Found = tuple[Cause, str, Sequence[int], str]


def _differing(waits: Mapping[int, Wait]) -> _Found | None:
    """Returns that two ranks are in different collectives of one group, though of the same number."""
    for rank, wait in sorted(waits.items()):
        if wait.differing:
            other, theirs = wait.differing[0]
            text = f"rank {rank} is in {wait}, and rank {other} called {theirs} in its place"
            return Cause.MISMATCH, text, [other], _DIFFER
    return None


def _crossed(waits: Mapping[int, Wait]) -> _Found | None:
    """Returns that ranks wait for each other in a circle."""
    circle = cycle_in({rank: [other for other in wait.missing if other in waits] for rank, wait in waits.items()})
    if not circle:
        return None
    parts = [
        f"rank {rank} is in {waits[rank]} and waits for rank {circle[(place + 1) % len(circle)]}"
        for place, rank in enumerate(circle)
    ]
    is_one_group = len({waits[rank].group for rank in circle}) == 1
    cause = Cause.MISMATCH if is_one_group else Cause.DEADLOCK
    advice = _FIRST if any(waits[rank].is_message for rank in circle) else _ORDER
    return cause, f"{format_ranks(circle)} wait for each other: {'; '.join(parts)}", circle, advice


def _in_debugger(waits: Mapping[int, Wait], views: Sequence[RankView]) -> _Found | None:
    """Returns which ranks ``breakpoint()`` has stopped, and who waits for them."""
    stopped = {view.rank: reason_of(view) for view in views if view.phase == DEBUGGER and not view.death}
    if not stopped:
        return None
    text = "; ".join(f"rank {rank} {reason.words}" for rank, reason in stopped.items())
    waiting = [rank for rank, wait in waits.items() if set(wait.missing) & set(stopped)]
    if waiting:
        verb = "waits" if len(waiting) == 1 else "wait"
        text += f"; {format_ranks(waiting)} {verb} in {waits[min(waiting)]}"
    return Cause.DEBUGGER, text, list(stopped), next(iter(stopped.values())).advice


def _missing(waits: Mapping[int, Wait], views: Mapping[int, RankView]) -> _Found | None:
    """Returns which rank has not come to the collective that most others wait in, and what it does instead."""
    counts = Counter(rank for wait in waits.values() for rank in wait.missing if rank not in waits)
    if not counts:
        return None
    most = max(counts.values())
    late = sorted(rank for rank, count in counts.items() if count == most)
    waiting = sorted(rank for rank, wait in waits.items() if set(wait.missing) & set(late))
    oldest = min(waiting, key=lambda rank: waits[rank].since)
    reasons = {rank: _reason(views, rank) for rank in late}
    first = min(late, key=lambda rank: (list(Cause).index(reasons[rank].cause) == 0, rank))
    alike = [rank for rank in late if reasons[rank].words == reasons[first].words]
    waited = seconds(views[oldest].time - waits[oldest].since)
    have = "has" if len(alike) == 1 else "have"
    # one that is stopped may stand in the collective itself
    verb = (
        f"{have} not {'left' if first in views and _stands_in(views[first], waits[oldest]) else waits[oldest].awaited}"
    )
    they = "it" if len(alike) == 1 else "each"
    text = (
        f"{format_ranks(alike)} {verb} {waits[oldest]}: {they} {reasons[first].words}; {format_ranks(waiting)} "
        f"{'has' if len(waiting) == 1 else 'have'} waited {waited}"
    )
    others = [f"rank {rank} {reasons[rank].words}" for rank in late if rank not in alike]
    text += "".join(f"; {other}" for other in others[:3])
    ended = reasons[first].cause == Cause.FINISHED
    return reasons[first].cause, text, late, _PAIR if ended and waits[oldest].is_message else reasons[first].advice


def _stands_in(view: RankView, wait: Wait) -> bool:
    """Whether a rank that cannot go on is in the collective that others wait in."""
    live = view.collective
    if not cannot_come(view) or live is None or not live.waiting:
        return False
    return (f"{live.description.group}/{live.key}", live.number) == (wait.group, wait.number)


def _reason(views: Mapping[int, RankView], rank: int) -> Reason:
    if rank in views:
        return reason_of(views[rank])
    return Reason(Cause.USER_CODE, "is not seen from here", "look at the host that it runs on")


def _gone(views: Sequence[RankView]) -> _Found | None:
    """Returns ranks that died or are stopped, though no other waits for them yet."""
    for view in views:
        if cannot_come(view):
            reason = reason_of(view)
            return reason.cause, f"rank {view.rank} {reason.words}", [view.rank], reason.advice
    return None


def _transferring(waits: Mapping[int, Wait]) -> _Found | None:
    if not waits:
        return None
    rank = min(waits, key=lambda each: waits[each].since)
    text = f"all members have entered {waits[rank]}, and {format_ranks(waits)} are still in it"
    return Cause.TRANSFER, text, [], "look at the network, or wait: large tensors take long"


def _going_on(views: Sequence[RankView]) -> _Found:
    """Returns what ranks do that wait for nobody: the longest in its phase first."""
    phases = {view.phase for view in views}
    if phases == {PAUSED}:
        return Cause.NOTHING, f"{format_ranks(view.rank for view in views)} are paused", [], "resume the run"
    busy = [view for view in views if view.phase not in (IDLE, PAUSED, "")]
    if not busy:
        return (
            Cause.NOTHING,
            f"no rank runs anything: {format_ranks(view.rank for view in views)} wait for a cell",
            [],
            "",
        )
    slowest = max(busy, key=lambda view: view.time - view.row.since if view.row is not None else 0.0)
    reason, row = reason_of(slowest), slowest.row
    for_s = seconds(slowest.time - row.since) if row is not None else "?"
    step = f"step {row.step}, " if row is not None and row.step else ""
    return reason.cause, f"no rank waits for another; rank {slowest.rank} {reason.words} ({step}{for_s})", [], ""


def _state_of(view: RankView, wait: Wait | None) -> RankState:
    row = view.row
    return RankState(
        rank=view.rank,
        pid=row.pid if row is not None else 0,
        state=_process_words(view),
        phase=view.phase,
        step=row.step if row is not None else 0,
        phase_s=view.time - row.since if row is not None else 0.0,
        does=f"waits in {wait}" if wait is not None else reason_of(view).words,
        waits_for=wait.missing if wait is not None else (),
        waited_s=view.time - wait.since if wait is not None else 0.0,
        stacks=view.stacks,
    )


_LETTERS = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk",
    "T": "stopped",
    "t": "held by a debugger",
    "I": "idle",
}


def _process_words(view: RankView) -> str:
    if view.death or view.activity is None:
        return "dead"
    return _LETTERS.get(view.activity.now.state, view.activity.now.state)
