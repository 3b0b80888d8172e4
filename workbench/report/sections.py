"""What a template needs to show one run: ``section_of(facts, sheet, ...)``; the run report, a notebook report's
appendix and the frozen panels all take their content from here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.core.records import EventKind
from workbench.plots.base import Plot
from workbench.report import mesh_diagram as plan
from workbench.report import timeline, words
from workbench.report.control_history import controls
from workbench.report.figures import Drawn, Sheet
from workbench.report.run_data import Happening, RunFacts
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

    facts: RunFacts
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
    holdings: list[plan.Holding]
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


def section_of(
    facts: RunFacts, sheet: Sheet, figures: Iterable[Plot], *, prefix: str = "", level: int = 2
) -> RunSection:
    """Everything there is to show about one run; interactive figures go onto ``sheet``."""
    drawn = sheet.draw(facts.store, figures, prefix)
    drawn += _timelines(facts, sheet, prefix)
    commands = controls(facts)
    begin = facts.happenings[0].time if facts.happenings else 0.0
    return RunSection(
        facts=facts,
        prefix=prefix,
        level=level,
        summary=words.summary(facts),
        tiles=tiles(facts),
        failure=_failure(facts),
        groups=_grouped(drawn),
        validation=facts.validation(),
        confusion=_confusion(facts),
        texts=[(h.step, words.short(h.value, _TEXT_LENGTH)) for h in facts.of_kind(EventKind.SAMPLE)][-_TEXTS_SHOWN:],
        events=_events(facts, begin),
        events_left_out=max(0, len(_told(facts)) - _EVENTS_SHOWN),
        controls=[{"after": words.duration(max(0.0, c.time - begin)), "control": c} for c in commands],
        mesh=plan.drawing(facts.mesh),
        mesh_words=plan.describe(facts.mesh),
        holdings=plan.holdings(facts),
        options=_options(facts),
        environment=_environment(facts),
        packages=_packages(facts),
        diff=words.short(_code(facts).get("diff"), _DIFF_LENGTH),
        untracked=_names(_code(facts).get("untracked")),
        verification=_flat(facts.verification) + _verified(facts),
        rerun=words.rerun(facts),
    )


def _timelines(facts: RunFacts, sheet: Sheet, prefix: str) -> list[Drawn]:
    found = []
    for chosen in timeline.chosen_steps(facts):
        title = f"Step {chosen.step}: {chosen.why}"
        bars = timeline.columns(facts, chosen.step)
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


def tiles(facts: RunFacts) -> list[tuple[str, str, str]]:
    """The figures at the top: (label, value, unit)."""
    figure = facts.summary()
    steps = f"{figure['steps']:,}"
    found = [("Steps", steps, f"of {facts.spec.steps:,}" if facts.spec else "")]
    counted = batch_of(facts.store.table("events"))[1].capitalize()
    for label, key, unit in (
        ("Training loss", "last_loss", f"from {words.number(figure['first_loss'])}"),
        ("Validation loss", "validation_loss", ""),
        (
            f"{counted} per second",
            "tokens_per_second",
            f"on {facts.mesh.world_size} rank{'s' if facts.mesh.world_size > 1 else ''}",
        ),
    ):
        if figure[key] is not None:
            found.append((label, words.number(figure[key]), unit))
    accuracy = [row["accuracy"] for row in facts.validation() if "accuracy" in row]
    if accuracy:
        found.append(("Accuracy", f"{100 * accuracy[-1]:.1f}", "%"))
    if facts.seconds:
        found.append(("Time", words.duration(facts.seconds), ""))
    return found


def _failure(facts: RunFacts) -> dict[str, Any] | None:
    failed = words.first_failure(facts)
    if failed is None:
        return None
    return {"who": failed.who, "step": failed.step, "text": failed.traceback or failed.message}


def _confusion(facts: RunFacts) -> dict[str, Any] | None:
    """The last confusion matrix: rows are true classes, each cell with its share of the row (for its shade)."""
    found = facts.of_kind(EventKind.VALIDATION, "confusion_matrix")
    if not found:
        return None
    try:
        matrix = np.asarray(found[-1].value, dtype=float)
    except (TypeError, ValueError):
        return None
    if matrix.ndim != 2 or not matrix.size:
        return None
    share = matrix / np.maximum(np.nansum(matrix, axis=1, keepdims=True), 1)
    rows = [
        [(words.number(value), round(float(np.nan_to_num(part)), 3)) for value, part in zip(*row, strict=True)]
        for row in zip(matrix.tolist(), share.tolist(), strict=True)
    ]
    return {"step": found[-1].step, "rows": rows}


def _told(facts: RunFacts) -> list[Happening]:
    """Events that have no place of their own in the report."""
    return [h for h in facts.happenings if h.kind not in ("sample", "validation", "control", "settings", "verify")]


def _events(facts: RunFacts, begin: float) -> list[dict[str, Any]]:
    told = _told(facts)[:_EVENTS_SHOWN]
    return [{"after": words.duration(max(0.0, h.time - begin)), "event": h} for h in told]


def _verified(facts: RunFacts) -> list[tuple[str, str]]:
    return [(f"{h.name} (step {h.step})", words.short(h.value)) for h in facts.of_kind(EventKind.VERIFY)]


def _options(facts: RunFacts) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in facts.spec.options().items() if value != ""] if facts.spec else []


def _environment(facts: RunFacts) -> list[tuple[str, str]]:
    """Machine, devices, seed, command line and code, as rows."""
    found = [(name, words.short(value)) for name, value in facts.machine.items()]
    known = facts.environment
    devices = sorted({rank.device for rank in facts.ranks if rank.device})
    if known.get("processor"):
        found.append(("processor", words.short(known["processor"])))
    if devices:
        found.append(("devices of the ranks", ", ".join(devices)))
    if facts.spec:
        found.append(("seed", str(facts.spec.seed)))
    command = known.get("command")
    if isinstance(command, list):
        found.append(("command line", " ".join(map(str, command))))
    for key in ("notebook", "directory", "executable"):
        if known.get(key):
            found.append((key, words.short(known[key])))
    code = _code(facts)
    found += [(f"git {key}", words.short(code[key])) for key in ("commit", "branch", "remote") if code.get(key)]
    if code.get("commit"):
        found.append(
            ("git state", "changed since that commit: the diff is below" if code.get("diff") else "as committed")
        )
    return found


def _code(facts: RunFacts) -> dict[str, Any]:
    code = facts.environment.get("git")
    return code if isinstance(code, dict) else {}


def _names(found: Any) -> list[str]:
    return [str(name) for name in found] if isinstance(found, list) else []


def _packages(facts: RunFacts) -> list[tuple[str, str]]:
    every = facts.environment.get("packages")
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
