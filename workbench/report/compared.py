"""Compares several runs for a report, with ``workbench.history.compare``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.history import compare, curves, show
from workbench.history import sources as subject
from workbench.report.figures import Drawn, Sheet
from workbench.report.run_data import RunData


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison of runs.

    ``labels``: names of the runs, in order. ``words``: sentences of the result. ``tables``: (title, column heads,
    rows); the first has one row per run. ``diffs``: label -> difference of the run's cell to that of the first run.
    ``figures``: figures in which the runs' curves are overlaid.
    """

    labels: list[str]
    words: list[str]
    tables: list[tuple[str, list[str], list[list[str]]]]
    diffs: dict[str, str]
    figures: list[Drawn]


def comparison(runs: Sequence[RunData], sheet: Sheet, labels: Sequence[str] = (), *, prefix: str = "") -> Compared:
    """Compare runs. The interactive figures are added to ``sheet``, with ids that begin with ``prefix``.

    ``labels``: names for the runs (default: their own names).
    """
    labels = list(labels) or names_of(runs)
    found = compare.of_subjects([_subject(run, label) for run, label in zip(runs, labels, strict=True)])
    figures = [(str(figure.title.text), figure) for figure in curves.figures(found)]
    return Compared(
        labels=labels,
        words=found.words(),
        tables=show.tables(found),
        diffs=found.code_diffs,
        figures=[sheet.add(title, f"{prefix}compared-{_id(title)}", figure) for title, figure in figures],
    )


def names_of(runs: Sequence[RunData]) -> list[str]:
    """The runs' names; equal names get a number."""
    names = [run.name for run in runs]
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return out


def _subject(run: RunData, label: str) -> subject.Subject:
    return subject.from_logs(
        run.path,
        run.metrics,
        run.store.table("events"),
        label=label,
        state=run.status,
        ranks=run.mesh.world_size,
        spec=run.spec,
        cell=run.cell,
        problem=" ".join(run.notes),
    )


def _id(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
