"""Several runs side by side in a report: ``workbench.history.compare`` of what their directories told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.history import compare, curves, show
from workbench.history import sources as subject
from workbench.report.figures import Drawn, Sheet
from workbench.report.run_data import RunFacts


@dataclass(frozen=True, kw_only=True)
class Compared:
    """``labels``: what the runs are called, in order; ``tables``: (title, heads, rows), a row per run in the first;
    ``diffs``: label -> how its cell differs from the first; ``figures``: the runs' curves over each other."""

    labels: list[str]
    words: list[str]
    tables: list[tuple[str, list[str], list[list[str]]]]
    diffs: dict[str, str]
    figures: list[Drawn]


def comparison(runs: Sequence[RunFacts], sheet: Sheet, labels: Sequence[str] = (), *, prefix: str = "") -> Compared:
    """Compare runs; the interactive curves go onto ``sheet``, with ids that begin with ``prefix``. ``labels``: what to
    call the runs (default: their names)."""
    labels = list(labels) or names_of(runs)
    found = compare.of_subjects([_subject(facts, label) for facts, label in zip(runs, labels, strict=True)])
    figures = [(str(figure.title.text), figure) for figure in curves.figures(found)]
    return Compared(
        labels=labels,
        words=found.words(),
        tables=show.tables(found),
        diffs=found.code_diffs,
        figures=[sheet.add(title, f"{prefix}compared-{_id(title)}", figure) for title, figure in figures],
    )


def names_of(runs: Sequence[RunFacts]) -> list[str]:
    """The runs' names; those that share one are numbered."""
    names = [facts.name for facts in runs]
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return out


def _subject(facts: RunFacts, label: str) -> subject.Subject:
    return subject.from_logs(
        facts.path,
        facts.metrics,
        facts.store.table("events"),
        label=label,
        state=facts.status,
        ranks=facts.mesh.world_size,
        spec=facts.spec,
        cell=facts.cell,
        problem=" ".join(facts.notes),
    )


def _id(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
