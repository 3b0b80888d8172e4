"""What limited a run, in a sentence: from its logs alone, and with the numbers that say so."""

from __future__ import annotations

import numpy as np

from workbench.report.facts import RunFacts

#: shares of the step time from which on something is worth a word
_DATA, _PHASE, _UNEVEN = 0.10, 0.15, 0.15


def limits(facts: RunFacts) -> str:
    """The sentence; "" when too little was logged to say anything."""
    steps = facts.store.table("steps")
    later = steps["step"] > 1
    if not later.any():
        return ""
    time, wait = steps["step_time_ms"][later], steps["data_wait_ms"][later]
    found = [
        text for text in (_data(wait, time), _phases(facts, float(np.mean(time))), _uneven(facts, steps, later)) if text
    ]
    if found:
        return "What limited it: " + "; ".join(found) + "."
    return (
        "Nothing stands out as a limit: no rank waited long for data, for others or for messages, as far as was logged."
    )


def _data(wait: np.ndarray, time: np.ndarray) -> str:
    share = float(np.sum(wait) / max(1e-9, np.sum(time)))
    return f"ranks waited for data {share:.0%} of the step time" if share >= _DATA else ""


def _phases(facts: RunFacts, step_ms: float) -> str:
    rows = facts.store.table("phases")
    if not rows["step"].size:
        return ""
    pairs = np.unique(rows["step"] * (1 + int(rows["rank"].max())) + rows["rank"]).size  # steps of ranks
    texts = []
    for phase, words in (
        ("communication", "compute waited for communication"),
        ("bubble", "pipeline stages waited for each other"),
        ("optimizer", "the optimizer took"),
    ):
        total = float(rows["duration_ms"][rows["phase"] == phase].sum())
        share = total / max(1e-9, pairs * step_ms)
        if share >= _PHASE:
            texts.append(f"{words} {share:.0%} of the step time")
    return "; ".join(texts)


def _uneven(facts: RunFacts, steps: dict[str, np.ndarray], later: np.ndarray) -> str:
    """Whether one rank's own work takes longer than the others' (ranks that wait for it take as long in sum)."""
    ranks = facts.mesh.world_size
    if ranks < 2:
        return ""
    rank, time = steps["rank"][later], steps["step_time_ms"][later]
    known = rank < ranks
    counts = np.bincount(rank[known], minlength=ranks)
    if not counts.all():
        return ""
    mean = np.bincount(rank[known], weights=time[known], minlength=ranks) / counts
    slowest = int(np.argmax(mean))
    usual = float(np.median(mean))
    more = float(mean[slowest]) / max(1e-9, usual) - 1
    return f"rank {slowest} took {more:.0%} longer a step than the usual rank" if more >= _UNEVEN else ""
