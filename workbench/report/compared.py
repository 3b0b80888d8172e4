"""Compares the runs of a report with ``workbench.history.compare``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.history import compare, curves, show
from workbench.history.sources import ComparedRun, from_logs
from workbench.report.figures import FigureBundle, ReportFigure
from workbench.report.run_data import RunData
from workbench.rundir.directory import run_name


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of several runs in a report.

    ``labels``: names of the runs, in order. ``sentences``: the result in words. ``tables``: (title, column heads,
    rows); the first table has one row per run. ``diffs``: label -> diff of the run's cell against the first run's cell.
    ``figures``: figures with the curves of all runs; ``logged``: those of values that the cells logged.
    """

    labels: list[str]
    sentences: list[str]
    tables: list[tuple[str, list[str], list[list[str]]]]
    diffs: dict[str, str]
    figures: list[ReportFigure]
    logged: list[ReportFigure]


def compare_runs(
    runs: Sequence[RunData], bundle: FigureBundle, labels: Sequence[str] = (), *, prefix: str = ""
) -> Comparison:
    """Compare runs and add the interactive figures to ``bundle``.

    ``labels``: one label per run (default: their names). ``prefix``: put before the ids of the figures' elements.
    """
    labels = list(labels) or compare.unique_labels([run_name(run.path) for run in runs])
    findings = compare.compare_loaded([_compared_run(run, label) for run, label in zip(runs, labels, strict=True)])
    figures = [(str(figure.title.text), figure) for figure in curves.figures(findings)]
    drawn = [
        bundle.add_figure(title, f"{prefix}compared-{_slug(title)}{number or ''}", figure, wide=False)
        for title, figure, number in _numbered(figures)
    ]
    return Comparison(
        labels=labels,
        sentences=findings.words(),
        tables=show.tables(findings),
        diffs=findings.code_diffs,
        figures=[each for each in drawn if not each.title.startswith(curves.LOGGED)],
        logged=[each for each in drawn if each.title.startswith(curves.LOGGED)],
    )


def _compared_run(run: RunData, label: str) -> ComparedRun:
    return from_logs(
        run.path,
        run.metrics,
        run.store.table("events"),
        label=label,
        state=run.status,
        ranks=run.mesh.world_size,
        spec=run.spec,
        cell=run.cell,
        problem=" ".join(run.notes),
        logged=run.store.table("values"),
    )


def _numbered(figures: Sequence[tuple[str, Any]]) -> list[tuple[str, Any, int]]:
    """Figures with a number each that tells those of equal ids apart (0: the first)."""
    seen: Counter[str] = Counter()
    out = []
    for title, figure in figures:
        out.append((title, figure, seen[_slug(title)]))
        seen[_slug(title)] += 1
    return out


def _slug(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
