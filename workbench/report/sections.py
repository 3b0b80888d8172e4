"""What a template needs to show one run: ``section_of(run, sheet, ...)``; the run report, a notebook report's
appendix and the frozen panels all take their content from here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.records import EventKind
from workbench.plots.base import Plot
from workbench.report import mesh_diagram, timeline, words
from workbench.report.control_history import controls
from workbench.report.figures import Drawn, Sheet
from workbench.report.run_data import LoggedEvent, RunData
from workbench.telemetry.derive import batch_of

#: events that the table shows; the rest is counted
_EVENTS_SHOWN = 500
_TEXTS_SHOWN = 20
_TEXT_LENGTH = 4000
_DIFF_LENGTH = 200_000
#: headings of the groups of figures, in the order of the report; other groups follow under their own name
_GROUPS = {
    "overview": "Curves",
    "samples": "Validation and samples",
    "ranks": "Ranks",
    "gradients": "Gradients",
    "communication": "Communication",
    "timeline": "Timeline",
}


@dataclass(kw_only=True)
class Group:
    """Figures under one heading. ``missing``: titles of those that the run has no data for, with what they say."""

    name: str
    title: str
    figures: list[Drawn]
    missing: list[Drawn]


@dataclass(kw_only=True)
class RunSection:
    """One run, ready for a template. ``prefix`` goes before every id; ``level`` is that of its section headings."""

    run: RunData
    prefix: str
    level: int
    summary: list[str]
    tiles: list[tuple[str, str, str]]
    failure: dict[str, Any] | None
    groups: list[Group]
    validation: list[dict[str, Any]]
    confusion: dict[str, Any] | None
    texts: list[tuple[int, str]]
    events: list[dict[str, Any]]
    events_left_out: int
    controls: list[dict[str, Any]]
    mesh: str
    mesh_words: str
    holdings: list[mesh_diagram.Holding]
    options: list[tuple[str, Any]]
    environment: list[tuple[str, str]]
    packages: list[tuple[str, str]]
    diff: str
    untracked: list[str]
    verification: list[tuple[str, str]]
    rerun: list[tuple[str, str]]

    @property
    def names(self) -> list[tuple[str, str]]:
        """(id, title) of the sections that this run has, in order: what a table of contents lists."""
        middle = [(group.name, group.title) for group in self.groups if group.figures or self.has_table(group.name)]
        optional = [("controls", "Controls", self.controls), ("verification", "Verification", self.verification)]
        rest = [(name, title) for name, title, there in optional if there]
        found = [("summary", "Summary"), *middle, ("plan", "Plan"), *rest, ("events", "Events")]
        return [*found, ("environment", "Environment"), ("spec", "Spec"), ("rerun", "Run it again")]

    @property
    def nothing_for(self) -> list[Drawn]:
        """Figures without data whose group has no section to say so."""
        return [f for g in self.groups if not g.figures and not self.has_table(g.name) for f in g.missing]

    def has_table(self, group: str) -> bool:
        """Whether a group has something beside its figures."""
        return group == "ranks" or (group == "samples" and bool(self.validation or self.texts or self.confusion))


def section_of(run: RunData, sheet: Sheet, figures: Iterable[Plot], *, prefix: str = "", level: int = 2) -> RunSection:
    """Everything there is to show about one run; interactive figures go onto ``sheet``."""
    drawn = sheet.draw(run.store, figures, prefix)
    drawn += _timelines(run, sheet, prefix)
    commands = controls(run)
    begin = run.logged_events[0].time if run.logged_events else 0.0
    return RunSection(
        run=run,
        prefix=prefix,
        level=level,
        summary=words.summary(run),
        tiles=tiles(run),
        failure=_failure(run),
        groups=_grouped(drawn),
        validation=run.validation(),
        confusion=_confusion(run),
        texts=[(h.step, words.short(h.value, _TEXT_LENGTH)) for h in run.of_kind(EventKind.SAMPLE)][-_TEXTS_SHOWN:],
        events=_events(run, begin),
        events_left_out=max(0, len(_table_events(run)) - _EVENTS_SHOWN),
        controls=[{"after": words.duration(max(0.0, c.time - begin)), "control": c} for c in commands],
        mesh=mesh_diagram.drawing(run.mesh),
        mesh_words=mesh_diagram.describe(run.mesh),
        holdings=mesh_diagram.holdings(run),
        options=_options(run),
        environment=_environment(run),
        packages=_packages(run),
        diff=words.short(_code(run).get("diff"), _DIFF_LENGTH),
        untracked=_names(_code(run).get("untracked")),
        verification=_flat(run.verification) + _verified(run),
        rerun=words.rerun(run),
    )


def _timelines(run: RunData, sheet: Sheet, prefix: str) -> list[Drawn]:
    found = []
    for chosen in timeline.chosen_steps(run):
        title = f"Step {chosen.step}: {chosen.why}"
        bars = timeline.columns(run, chosen.step)
        place = f"{prefix}timeline-{chosen.step}"
        found.append(sheet.add(title, place, timeline.figure(bars), tab="timeline", columns=bars))
    return found


def _grouped(drawn: list[Drawn]) -> list[Group]:
    names = [*_GROUPS, *dict.fromkeys(figure.tab for figure in drawn if figure.tab not in _GROUPS)]
    groups = []
    for name in names:
        own = [figure for figure in drawn if figure.tab == name]
        shown = [figure for figure in own if figure.picture or figure.problem]
        missing = [figure for figure in own if not (figure.picture or figure.problem)]
        title = _GROUPS.get(name, name.replace("_", " ").capitalize())
        groups.append(Group(name=name, title=title, figures=shown, missing=missing))
    return groups


def tiles(run: RunData) -> list[tuple[str, str, str]]:
    """The figures at the top: (label, value, unit)."""
    figure = run.summary()
    steps = f"{figure['steps']:,}"
    found = [("Steps", steps, f"of {run.spec.steps:,}" if run.spec else "")]
    counted = batch_of(run.store.table("events"))[1].capitalize()
    for label, key, unit in (
        ("Training loss", "last_loss", f"from {words.number(figure['first_loss'])}"),
        ("Validation loss", "validation_loss", ""),
        (
            f"{counted} per second",
            "tokens_per_second",
            f"on {run.mesh.world_size} rank{'s' if run.mesh.world_size > 1 else ''}",
        ),
    ):
        if figure[key] is not None:
            found.append((label, words.number(figure[key]), unit))
    accuracy = [row["accuracy"] for row in run.validation() if "accuracy" in row]
    if accuracy:
        found.append(("Accuracy", f"{100 * accuracy[-1]:.1f}", "%"))
    if run.seconds:
        found.append(("Time", words.duration(run.seconds), ""))
    return found


def _failure(run: RunData) -> dict[str, Any] | None:
    failed = words.first_failure(run)
    if failed is None:
        return None
    return {"who": failed.who, "step": failed.step, "text": failed.traceback or failed.message}


def _confusion(run: RunData) -> dict[str, Any] | None:
    """The last confusion matrix: rows are true classes, each cell with its share of the row (for its shade)."""
    found = run.of_kind(EventKind.VALIDATION, "confusion_matrix")
    if not found:
        return None
    try:
        matrix = np.asarray(found[-1].value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None
    if matrix.ndim != 2 or not matrix.size:
        return None
    share = matrix / np.maximum(np.nansum(matrix, axis=1, keepdims=True), 1)
    rows = [
        [(words.number(value), round(float(np.nan_to_num(part)), 3)) for value, part in zip(*row, strict=True)]
        for row in zip(matrix.tolist(), share.tolist(), strict=True)
    ]
    return {"step": found[-1].step, "rows": rows}


#: kinds of events that have a section of their own in the report
_KINDS_WITH_SECTION = (
    EventKind.SAMPLE,
    EventKind.VALIDATION,
    EventKind.CONTROL,
    EventKind.SETTINGS,
    EventKind.VERIFY,
)


def _table_events(run: RunData) -> list[LoggedEvent]:
    """Return the events of the table of events: those without a section of their own."""
    return [event for event in run.logged_events if event.kind not in _KINDS_WITH_SECTION]


def _events(run: RunData, begin: float) -> list[dict[str, Any]]:
    shown = _table_events(run)[:_EVENTS_SHOWN]
    return [{"after": words.duration(max(0.0, h.time - begin)), "event": h} for h in shown]


def _verified(run: RunData) -> list[tuple[str, str]]:
    return [(f"{h.name} (step {h.step})", words.short(h.value)) for h in run.of_kind(EventKind.VERIFY)]


def _options(run: RunData) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in run.spec.options().items() if value != ""] if run.spec else []


def _environment(run: RunData) -> list[tuple[str, str]]:
    """Machine, devices, seed, command line and code, as rows."""
    found = [(name, words.short(value)) for name, value in run.machine.items()]
    known = run.environment
    devices = sorted({rank.device for rank in run.ranks if rank.device})
    if known.get("processor"):
        found.append(("processor", words.short(known["processor"])))
    if devices:
        found.append(("devices of the ranks", ", ".join(devices)))
    if run.spec:
        found.append(("seed", str(run.spec.seed)))
    command = known.get("command")
    if isinstance(command, list):
        found.append(("command line", " ".join(map(str, command))))
    for key in ("notebook", "directory", "executable"):
        if known.get(key):
            found.append((key, words.short(known[key])))
    code = _code(run)
    found += [(f"git {key}", words.short(code[key])) for key in ("commit", "branch", "remote") if code.get(key)]
    if code.get("commit"):
        found.append(
            ("git state", "changed since that commit: the diff is below" if code.get("diff") else "as committed")
        )
    return found


def _code(run: RunData) -> dict[str, Any]:
    code = run.environment.get("git")
    return code if isinstance(code, dict) else {}


def _names(found: Any) -> list[str]:
    return [str(name) for name in found] if isinstance(found, list) else []


def _packages(run: RunData) -> list[tuple[str, str]]:
    every = run.environment.get("packages")
    return [(str(name), words.short(version)) for name, version in every.items()] if isinstance(every, dict) else []


def _flat(table: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A nested table as rows: ``a.b`` -> value."""
    rows: list[tuple[str, str]] = []
    for name, value in table.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", words.short(value)))
    return rows


__all__ = ["Group", "RunSection", "section_of", "tiles"]
