"""A comparison as words, as text and as HTML. Everything from a run is escaped."""

from __future__ import annotations

import html as markup
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.history.listing import number as short
from workbench.history.sources import AXES
from workbench.rundir.directory import run_name

if TYPE_CHECKING:
    import pandas as pd

    from workbench.history.findings import Figures, Findings, Group, NoiseTest, Scaling
    from workbench.history.sources import ComparedRun

#: places on the axis at which a terminal shows the curves
_PLACES = 6
_STYLE = (
    "<style>.dw-cmp{font:13px/1.45 system-ui,sans-serif}.dw-cmp table{border-collapse:collapse;margin:4px 0 14px}"
    ".dw-cmp th,.dw-cmp td{padding:2px 10px;text-align:left;border-bottom:1px solid #8884;max-width:28em;"
    "overflow-wrap:anywhere}.dw-cmp .s{white-space:nowrap}.dw-cmp caption{text-align:left;"
    "font-weight:600;padding:4px 0}.dw-cmp pre{overflow:auto;max-height:24em}.dw-cmp .scroll{overflow-x:auto}</style>"
)


#: characters of a cell that stays on one line where the page is narrow
_NEVER_BROKEN = 16


def number(value: float | None) -> str:
    """Four digits; a dash for what is not known."""
    return "\N{EN DASH}" if value is None or math.isnan(value) else short(value)


def _name(metric: str, found: Findings) -> str:
    names = {"loss": "training loss (mean of the last tenth)", "validation": "validation loss"}
    return names.get(metric, f"{found.counts} per second per device")


def figures_frame(found: Findings) -> pd.DataFrame:
    """One row per run."""
    import pandas as pd

    rows = [
        {
            "run": s.label,
            "plan": s.plan or s.origin,
            "ranks": s.ranks or None,
            "state": s.state,
            "steps": f.steps,
            "loss": f.loss,
            "best_loss": f.best_loss,
            "validation": f.validation,
            "validation_step": f.validation_step or None,
            "tps": f.tps,
            "seconds": f.seconds,
        }
        for s, f in zip(found.compared, found.figures, strict=True)
    ]
    return pd.DataFrame(rows)


def words(found: Findings) -> list[str]:
    """The findings, the most important first."""
    sentences = [*_best(found), *(_test(found, test) for test in found.tests)]
    alone = [_group_name(found, group) for group in found.groups if len(group.repeats("loss", found.figures)) < 2]
    if len(found.groups) > 1 and alone:
        sentences.append(
            f"Differences may be seed noise: there is one seed only of {'; '.join(alone)}. Repeat with another --seed."
        )
    if len(found.groups) == 1 and len(found.compared) > 1:
        sentences.append(_repeats(found))
    if found.scaling is not None:
        sentences += _scaling(found.scaling, found.counts)
    if len({f.steps for f in found.figures if f.steps}) > 1:
        end = f"step {short(found.common)}" if found.x == "step" else f"{short(found.common)} ({AXES[found.x]})"
        sentences.append(f"Losses are compared up to {end}, which all of these runs reached.")
    untrained = [s.label for s, f in zip(found.compared, found.figures, strict=True) if not f.steps]
    if untrained:
        sentences.append(f"Without a completed step: {', '.join(untrained)}.")
    return sentences + [f"{s.label}: {s.problem}" for s in found.compared if s.problem]


def _group_name(found: Findings, group: Group) -> str:
    """The run's name for a group of one, else what sets the group apart."""
    return group.label if len(group.members) > 1 else found.compared[group.members[0]].label


def _best(found: Findings) -> list[str]:
    """Which run came lowest, and which was the fastest: of each figure that two runs have and differ in."""
    sentences = []
    for metric, better in (("validation", min), ("loss", min), ("tps", max)):
        known = {s.label: value for s, f in _pairs(found) if math.isfinite(value := getattr(f, metric))}
        if len(set(known.values())) < 2:
            continue
        at = {s.label: f.validation_step for s, f in _pairs(found)}
        if metric == "validation" and not all(f.validation_is_common for f in found.figures):
            told = "; ".join(f"{label} {short(value)} at step {at[label]}" for label, value in known.items())
            sentences.append(f"Validation losses are not compared, as no step was validated in all runs: {told}.")
            continue
        best = better(known, key=lambda label: known[label])
        verb = "has the lowest" if better is min else "has the most"
        where = f" at step {at[best]}" if metric == "validation" else ""
        sentences.append(f"{best} {verb} {_name(metric, found)}{where}, {short(known[best])}.")
    return sentences


def _pairs(found: Findings) -> list[tuple[ComparedRun, Figures]]:
    return list(zip(found.compared, found.figures, strict=True))


def _repeats(found: Findings) -> str:
    losses = found.groups[0].repeats("loss", found.figures)
    count = len(found.compared)
    if len(losses) > 1:
        return (
            f"These are {count} repeats of one spec: training loss {_spread(losses)} (standard deviation over seeds)."
        )
    apart = float(np.ptp([f.loss for f in found.figures]))
    same = "their training losses are equal" if apart == 0 else f"their training losses differ by {short(apart)}"
    return f"These are {count} runs of one spec and one seed: {same}. Repeat with another --seed to measure seed noise."


def _spread(values: Sequence[float]) -> str:
    return f"{short(float(np.mean(values)))} \N{PLUS-MINUS SIGN} {short(float(np.std(values, ddof=1)))}"


def _test(found: Findings, test: NoiseTest) -> str:
    a, b = found.groups[test.a], found.groups[test.b]
    values = [group.repeats(test.metric, found.figures) for group in (a, b)]
    of = "runs" if test.metric == "tps" else "seeds"
    sides = [f"{group.label}: {_spread(v)} ({len(v)} {of})" for group, v in zip((a, b), values, strict=True)]
    exact = test.permutation
    split = f"permutation test p = {exact.p:.3g} over {'all' if exact.exact else 'random'} {exact.arrangements} splits"
    verdict = "more than seed noise explains" if test.exceeds else "within seed noise"
    w = test.welch
    return (
        f"{_name(test.metric, found).capitalize()}: {sides[0]}; {sides[1]}. The difference {short(w.difference)} (95 % "
        f"interval {short(w.low)} to {short(w.high)}) is {verdict} (Welch t = {w.t:.2f}, {w.df:.1f} degrees of "
        f"freedom, p = {test.p:.2g}{' after Holm' if len(found.tests) > 1 else ''}; {split})."
    )


def _scaling(scaling: Scaling, counts: str) -> list[str]:
    best = scaling.ranks[-1]
    out = [
        f"From {scaling.ranks[0]} to {best} ranks {counts} per second grow {scaling.speed_up[-1]:.2f}x: "
        f"{100 * scaling.efficiency[-1]:.0f} % efficiency"
        + (" (weak scaling: the global batch is not the same)." if scaling.weak else ".")
    ]
    fit = scaling.fit
    if fit is not None:
        error = f" \N{PLUS-MINUS SIGN} {100 * fit.error:.2g}" if math.isfinite(fit.error) else ""
        limit = "no limit" if math.isinf(fit.limit) else f"a limit of {fit.limit:.1f}x"
        why = "" if error else " (two points fit exactly: no error can be given)"
        out.append(f"Amdahl's law fits a serial share of {100 * fit.serial:.2g}{error} %{why}: {limit} over one rank.")
    return out


def curve_table(found: Findings) -> tuple[list[str], list[list[str]]]:
    """Losses at a few places of the axis that all runs reached: heads and rows of text."""
    places = np.linspace(found.common / _PLACES, found.common, _PLACES)
    if found.x in ("step", "tokens"):
        places = np.unique(np.round(places))
    rows = []
    for s in found.compared:
        axis, loss = s.axis(found.x), s.curve["loss"]
        known = np.isfinite(axis) & np.isfinite(loss)
        values = np.interp(places, axis[known], loss[known]) if known.any() else np.full(places.size, math.nan)
        rows.append([s.label, *map(number, values)])
    return [f"loss at {AXES[found.x]}", *(short(float(p)) for p in places)], rows


def _figure_rows(found: Findings) -> tuple[list[str], list[list[str]]]:
    heads = ["run", "plan", "ranks", "state", "steps", "last loss", "best loss", "validation", "at step"]
    heads += [f"{found.counts}/s/device", "seconds"]
    rows = [
        [s.label, s.plan or s.origin, str(s.ranks or ""), s.state, str(f.steps)]
        + [number(value) for value in (f.loss, f.best_loss, f.validation)]
        + [str(f.validation_step or "\N{EN DASH}"), *(number(value) for value in (f.tps, f.seconds))]
        for s, f in zip(found.compared, found.figures, strict=True)
    ]
    names = [run_name(s.path) for s in found.compared]
    if len(set(names)) < len(names):  # directories tell apart what names do not
        return [*heads, "directory"], [[*row, s.path.name] for row, s in zip(rows, found.compared, strict=True)]
    return heads, rows


def _difference_rows(found: Findings) -> tuple[list[str], list[list[str]]]:
    heads = ["what differs", "", *(s.label for s in found.compared)]
    return heads, [
        [d.section, d.name, *("\N{EN DASH}" if v in (None, "") else _short_text(v) for v in d.values)]
        for d in found.differences
    ]


def _short_text(value: Any, most: int = 200) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _scaling_rows(scaling: Scaling, counts: str) -> tuple[list[str], list[list[str]]]:
    heads = ["ranks", f"{counts}/s, all ranks", "speed-up", "efficiency", "Amdahl fit"]
    first = scaling.ranks[0]
    rows = []
    for n, total, gain, share in zip(scaling.ranks, scaling.total, scaling.speed_up, scaling.efficiency, strict=True):
        fit = scaling.fit
        fitted = f"{fit.speed_up(n) / fit.speed_up(first):.2f}x" if fit else ""
        rows.append([str(n), short(total), f"{gain:.2f}x", f"{100 * share:.0f} %", fitted])
    return heads, rows


def tables(found: Findings) -> list[tuple[str, list[str], list[list[str]]]]:
    """What text and pages show: title, heads and rows of text; one row per run in the first."""
    shown = [("Runs", *_figure_rows(found)), ("Curves", *curve_table(found))]
    if found.differences:
        shown.append(("What differs", *_difference_rows(found)))
    if found.scaling is not None:
        shown.append(("Scaling", *_scaling_rows(found.scaling, found.counts)))
    return shown


def text(found: Findings) -> str:
    """For a terminal."""
    parts = ["\n".join(words(found))] if words(found) else []
    parts += [_plain(heads, rows) for _, heads, rows in tables(found)]
    return "\n\n".join([*parts, *found.code_diffs.values()])


def _plain(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    lines = (heads, *rows)
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def html(found: Findings) -> str:
    """For a notebook: findings, tables, and the diffs of the cells, folded."""
    parts = [_STYLE, '<div class="dw-cmp">']
    if words(found):
        parts.append("<ul>" + "".join(f"<li>{markup.escape(line)}</li>" for line in words(found)) + "</ul>")
    for title, heads, rows in tables(found):
        parts.append(f'<div class="scroll"><table><caption>{title}</caption><thead>{_line("th", heads)}</thead><tbody>')
        parts += [_line("td", row) for row in rows]
        parts.append("</tbody></table></div>")
    for label, diff in found.code_diffs.items():
        parts.append(f"<details><summary>cell.py of {markup.escape(label)}, differences from the first run</summary>")
        parts.append(f"<pre>{markup.escape(diff)}</pre></details>")
    return "".join([*parts, "</div>"])


def _line(tag: str, cells: Sequence[str]) -> str:
    kind = ' scope="col"' if tag == "th" else ""

    def drawn(cell: str) -> str:
        short_class = ' class="s"' if len(cell) <= _NEVER_BROKEN else ""
        return f"<{tag}{kind}{short_class}>{markup.escape(cell)}</{tag}>"

    return "<tr>" + "".join(map(drawn, cells)) + "</tr>"
