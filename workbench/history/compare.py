"""Comparing runs: what differs, how much faster, and whether that is more than seed noise. No drawing here."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import ConfigError, suggest
from workbench.history import show, statistics
from workbench.history.findings import Difference, Figures, Findings, Group, NoiseTest, Scaling
from workbench.history.sources import AXES, ComparedRun, load
from workbench.history.statistics import Permutation, Welch

if TYPE_CHECKING:
    import pandas as pd

    from workbench.rundir.state import HasPath

#: options that do not make another experiment: repeats differ in them
REPEAT_OPTIONS = ("seed", "name")
#: the share of a curve, from its common end back, over which its loss is averaged
FINAL_SHARE = 0.1
_LONGEST_DIFF = 400
_SECTIONS = ("spec", "changed while training", "environment", "code")


class Comparison(Findings):
    """Runs beside each other. It shows itself as tables, in a notebook as HTML."""

    def table(self) -> pd.DataFrame:
        """One row per run: plan, ranks, state and the numbers of ``Figures``."""
        return show.figures_frame(self)

    def curves(self) -> pd.DataFrame:
        """All curves, long: run, the axis, step and loss."""
        import pandas as pd

        parts = [
            pd.DataFrame({"run": s.label, "step": s.curve["step"], self.x: s.axis(self.x), "loss": s.curve["loss"]})
            for s in self.compared
        ]
        return pd.concat(parts, ignore_index=True)

    def differences_table(self) -> pd.DataFrame:
        """What differs: section, name and a column per run."""
        import pandas as pd

        columns = ["section", "name", *(s.label for s in self.compared)]
        return pd.DataFrame([[d.section, d.name, *d.values] for d in self.differences], columns=columns)

    def words(self) -> list[str]:
        """The findings in sentences."""
        return show.words(self)

    def __repr__(self) -> str:
        return show.text(self)

    def _repr_html_(self) -> str:
        return show.html(self)


def compare(runs: Sequence[HasPath | str | Path], x: str = "step", *, tag: str = "") -> Comparison:
    """Compare two or more runs: ``Run`` objects, names, directories, or paths of TensorBoard files.

    ``x``: the axis over which curves are laid and ends are matched: step, tokens, time or bytes. ``tag``: the scalar
    that is the loss in TensorBoard files. Raises ``ConfigError`` for fewer than two runs, an unknown axis or one that a
    run does not know, and ``RunDirectoryError`` for a run that is not there.
    """
    if x not in AXES:
        raise ConfigError(f"unknown axis {x!r}: {suggest(x, AXES)}", field="--x")
    if len(runs) < 2:
        raise ConfigError(f"a comparison needs at least two runs, not {len(runs)}", field="RUN")
    names = [run if isinstance(run, (str, Path)) else run.path for run in runs]
    compared = [load(name, x=x, tag=tag) for name in names]
    labels = unique_labels([run.label for run in compared])
    return compare_loaded([replace(s, label=label) for s, label in zip(compared, labels, strict=True)], x)


def compare_loaded(compared: Sequence[ComparedRun], x: str = "step") -> Comparison:
    """The comparison of what is loaded: pure."""
    axes = [run.axis(x) for run in compared]
    reached = [float(np.nanmax(axis)) for axis in axes if axis.size]
    common = min(reached, default=0.0)  # of the runs that took a step
    validated = _common_validation(compared, axes, common, x)
    figures = tuple(figures_of(s, axis, common, validated) for s, axis in zip(compared, axes, strict=True))
    groups = group(compared)
    return Comparison(
        compared=tuple(compared),
        x=x,
        common=common,
        figures=figures,
        groups=groups,
        differences=tuple(differences(compared)),
        code_diffs=code_diffs(compared),
        tests=tuple(noise_tests(groups, figures)),
        scaling=scaling(compared, figures),
    )


def unique_labels(names: Sequence[str]) -> list[str]:
    """The names, those that occur more than once with a number: ``name (1)``, ``name (2)``."""
    counted: Counter[str] = Counter()
    labels = []
    for name in names:
        counted[name] += 1
        labels.append(name if names.count(name) == 1 else f"{name} ({counted[name]})")
    return labels


def _validation_places(run: ComparedRun, axis: np.ndarray) -> np.ndarray:
    """Where on the axis each validation was; NaN for a step that the curve does not have."""
    steps, where = run.curve["step"], run.validation[0]
    if not steps.size:
        return np.full(where.size, math.nan)
    place = np.minimum(np.searchsorted(steps, where), steps.size - 1)
    return np.where(steps[place] == where, axis[place], math.nan)


def _common_validation(
    compared: Sequence[ComparedRun], axes: Sequence[np.ndarray], common: float, x: str
) -> float | None:
    """The last place of the axis, up to ``common``, at which all runs that validate did; None where there is none. Over
    time and bytes no two runs validate at the same place, so there it is ``common``: the last up to there count."""
    if x not in ("step", "tokens"):
        return common
    places = [_validation_places(s, axis) for s, axis in zip(compared, axes, strict=True) if s.validation[0].size]
    shared = set.intersection(*({float(p) for p in of if p <= common} for of in places)) if places else set()
    return max(shared, default=None)


def figures_of(run: ComparedRun, axis: np.ndarray, common: float, validated: float | None) -> Figures:
    """A run's numbers: losses up to ``common`` on the axis, validation up to ``validated`` (None: ``common``)."""
    loss, steps, tps = run.curve["loss"], run.curve["step"], run.curve["tps"]
    last = (axis <= common) & (axis >= common * (1 - FINAL_SHARE)) & np.isfinite(loss)
    if not last.any() and loss.size:
        last = np.zeros(loss.size, dtype=bool)
        last[max(0, int(np.searchsorted(axis, common, side="right")) - 1)] = True
    where, validation = run.validation
    before = _validation_places(run, axis) <= (common if validated is None else validated)
    rates = tps[1:] if tps.size > 1 else tps
    rates = rates[np.isfinite(rates)]
    finite = loss[np.isfinite(loss)]
    return Figures(
        loss=float(loss[last].mean()) if last.any() else math.nan,
        best_loss=float(finite.min()) if finite.size else math.nan,
        validation=float(validation[before][-1]) if before.any() else math.nan,
        tps=float(np.median(rates)) if rates.size else math.nan,
        seconds=float(run.curve["time"][-1]) if steps.size else math.nan,
        steps=int(steps[-1]) if steps.size else 0,
        validation_step=int(where[before][-1]) if before.any() else 0,
        validation_is_common=validated is not None,
    )


def group(compared: Sequence[ComparedRun]) -> tuple[Group, ...]:
    """Repeats together, in the order of their first run. An imported curve is a group of its own."""
    members: dict[Any, list[int]] = {}
    for index, run in enumerate(compared):
        kept = {k: v for k, v in run.options.items() if k not in REPEAT_OPTIONS}
        key = (repr(sorted(kept.items())), run.cell, repr(run.changed)) if run.options else index
        members.setdefault(key, []).append(index)
    firsts = [compared[inside[0]] for inside in members.values()]
    return tuple(
        Group(
            label=_group_label(first, firsts),
            members=tuple(inside),
            seeds=tuple(compared[index].options.get("seed") for index in inside),
        )
        for first, inside in zip(firsts, members.values(), strict=True)
    )


def _group_label(run: ComparedRun, others: Sequence[ComparedRun]) -> str:
    """What sets a group apart: the options that differ between groups, else the run's name."""
    if not all(other.options for other in others):
        return run.label
    if any(run.changed != other.changed for other in others):
        return run.label
    told = [
        f"{name} {'unset' if value is None else value}"
        for name, value in run.options.items()
        if name not in REPEAT_OPTIONS and len({repr(other.options.get(name)) for other in others}) > 1
    ]
    return ", ".join(told)[:120] or run.label


def differences(compared: Sequence[ComparedRun]) -> list[Difference]:
    """Settings that are not the same everywhere: of the spec, those changed by hand while training, of the environment,
    and the code."""
    found = []
    for section, tables in (
        ("spec", [s.options for s in compared]),
        ("environment", [s.environment for s in compared]),
    ):
        for name in dict.fromkeys(name for table in tables for name in table if name != "name"):
            values = tuple(table.get(name) for table in tables)
            # an imported curve says nothing of its settings, so nothing differs from it
            said = [value for value, table in zip(values, tables, strict=True) if table]
            if any(value != said[0] for value in said):
                code = section == "environment" and any(word in name for word in ("commit", "git", "dirty"))
                found.append(Difference(section="code" if code else section, name=name, values=values))
    for name in dict.fromkeys(name for s in compared for name in s.changed):
        values = tuple(s.changed.get(name) for s in compared)
        if len(set(values)) > 1:
            found.append(Difference(section="changed while training", name=name, values=values))
    cells = [s.cell for s in compared]
    ours = [s.cell for s in compared if s.origin == "run"]
    if any(cell != ours[0] for cell in ours):
        lines = tuple(_lines(cell) if cell else None for cell in cells)
        found.append(Difference(section="code", name="cell.py", values=lines))
    return sorted(found, key=lambda d: _SECTIONS.index(d.section))


def _lines(cell: str) -> str:
    count = cell.count("\n") + 1
    return f"{count} line{'s' if count != 1 else ''}"


def code_diffs(compared: Sequence[ComparedRun]) -> dict[str, str]:
    """Unified diff of each run's cell against the first run's: label -> text. Equal cells have none."""
    ours = [s for s in compared if s.origin == "run"]
    out = {}
    for run in ours[1:]:
        lines = list(
            difflib.unified_diff(
                ours[0].cell.split("\n"), run.cell.split("\n"), ours[0].label, run.label, lineterm="", n=2
            )
        )
        if len(lines) > _LONGEST_DIFF:
            lines = [*lines[:_LONGEST_DIFF], f"... {len(lines) - _LONGEST_DIFF} more lines"]
        if lines:
            out[run.label] = "\n".join(lines)
    return out


def noise_tests(groups: Sequence[Group], figures: Sequence[Figures]) -> list[NoiseTest]:
    """Every pair of groups that have repeats, for the loss, the validation loss and the throughput."""
    found: list[tuple[str, int, int, Welch, Permutation]] = []
    metrics = ["loss", "tps"]
    if all(figure.validation_is_common for figure in figures):
        metrics.insert(1, "validation")
    for metric in metrics:
        values = [each.repeats(metric, figures) for each in groups]
        usable = [i for i, v in enumerate(values) if len(v) >= 2 and all(map(math.isfinite, v))]
        for place, a in enumerate(usable):
            for b in usable[place + 1 :]:
                tested = statistics.welch(values[a], values[b]), statistics.permutation(values[a], values[b])
                found.append((metric, a, b, *tested))
    adjusted = statistics.holm([each[3].p for each in found])
    return [
        NoiseTest(metric=metric, a=a, b=b, welch=w, permutation=permuted, p=p)
        for (metric, a, b, w, permuted), p in zip(found, adjusted, strict=True)
    ]


def scaling(compared: Sequence[ComparedRun], figures: Sequence[Figures]) -> Scaling | None:
    """Speed-up over ranks when the runs have different numbers of them; None otherwise. Repeats are averaged."""
    points: dict[int, list[float]] = {}
    for run, figure in zip(compared, figures, strict=True):
        if run.ranks and math.isfinite(figure.tps) and figure.tps > 0:
            points.setdefault(run.ranks, []).append(figure.tps * run.ranks)
    if len(points) < 2:
        return None
    ranks = tuple(sorted(points))
    total = tuple(float(np.mean(points[n])) for n in ranks)
    speed_up = tuple(value / total[0] for value in total)
    batches = {s.options.get("batch_size") for s in compared if s.ranks in points}
    each = [(n, 1.0 / value) for n in ranks for value in points[n]]
    weak = len(batches) > 1
    return Scaling(
        ranks=ranks,
        total=total,
        speed_up=speed_up,
        efficiency=tuple(s * ranks[0] / n for s, n in zip(speed_up, ranks, strict=True)),
        fit=None if weak else statistics.amdahl([n for n, _ in each], [t for _, t in each]),
        weak=weak,
    )
