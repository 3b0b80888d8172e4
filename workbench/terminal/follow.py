"""Shows the progress of runs from their run directories: as bars in a terminal, as lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from workbench.core import background
from workbench.core.records import EventKind
from workbench.errors import WorkbenchError
from workbench.events.decode import of_kind
from workbench.events.words import words
from workbench.run.api import Run
from workbench.rundir.state import ENDED, state_of
from workbench.telemetry import progress
from workbench.telemetry.row_views import since
from workbench.telemetry.store import Store


@dataclass
class _FollowedRun:
    """A run whose progress is shown. ``lines_due``: how many multiples of the steps per line it had last reached;
    ``events``: how many of its events were looked at."""

    store: Store
    bar: TaskID | None = None
    lines_due: int = -1
    events: int = 0
    is_over: bool = False


def follow(
    find_runs: Callable[[], Iterable[Path]],
    is_done: Callable[[], bool],
    *,
    steps_per_line: int = 0,
    interval_s: float = 0.25,
    console: Console | None = None,
    make_label: Callable[[Path, str], str] = lambda _, name: name,
) -> None:
    """Show the progress of the runs until ``is_done()`` is true.

    ``find_runs``: returns the run directories to show; it is called every ``interval_s`` seconds, as new runs may
    start. ``steps_per_line``: without a terminal, a line is printed once in so many steps (0: ten lines per run).
    ``make_label``: returns the label of a run from its directory and its name. ``KeyboardInterrupt`` is not caught, but
    the bars are closed before it leaves this function.
    """
    console = console or Console()
    followed: dict[Path, _FollowedRun] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=False) as bars:
        while True:
            all_done = is_done()
            for path in find_runs():
                if path not in followed:
                    followed[path] = _FollowedRun(Store(path))
                _show_progress(followed[path], bars, steps_per_line, all_done=all_done, make_label=make_label)
            if all_done:
                return
            time.sleep(interval_s)


def follow_lines(run: Run, ended: Callable[[], bool] | None = None) -> None:
    """Show the progress of a run of this process until it has ended. Prints lines even in a terminal, because the
    terminal may show an IPython prompt, which bars would overwrite. ``ended``: in place of ``run.ended``."""
    follow(
        lambda: [run.path],
        ended or run.ended,
        steps_per_line=max(1, run.spec.steps // 20) if run.spec.steps else 0,
        console=Console(force_terminal=False),
    )


def follow_in_background(run: Run) -> None:
    """Show the progress of a run from a thread, so that the prompt stays usable. If the run fails, the thread prints
    the traceback once."""

    def show() -> None:
        try:
            follow_lines(run)
            run.raise_if_failed()
        except WorkbenchError as error:
            print(*error._render_traceback_(), sep="\n", flush=True)

    failed = background.warner(
        f"the progress of run {run.name!r} is no longer shown; the run continues, and run.status shows its state"
    )
    background.thread(show, name=f"progress-{run.name}", failed=failed).start()


def _show_progress(
    run: _FollowedRun,
    bars: Progress,
    steps_per_line: int,
    *,
    all_done: bool,
    make_label: Callable[[Path, str], str],
) -> None:
    """Read what the run has logged since the last call, and update its bar or print a line if one is due."""
    if run.is_over:
        return
    try:
        run.store.refresh()
        spec, snapshot = run.store.spec, progress.snapshot(run.store)
    except WorkbenchError:
        return  # the spec is still being written
    label = make_label(run.store.run, spec.name)
    events, run.events = since(run.store, "events", run.events)
    for event in of_kind(events, EventKind.RANK):
        if event.name in ("stalled", "moving"):
            text = f"{label}: {words(event.kind, event.name, event.value)}"
            bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
    state = state_of(run.store.table("events"), spec.plan.ranks)
    run.is_over = all_done or state in ENDED
    if bars.disable:
        lines_due = snapshot.step // (steps_per_line or max(1, (snapshot.steps or 100) // 10))
        if run.is_over or lines_due > run.lines_due:
            run.lines_due = lines_due
            bars.console.print(progress.line(label, state, snapshot), markup=False, highlight=False, soft_wrap=True)
        return
    if run.bar is None:
        run.bar = bars.add_task(escape(label), total=snapshot.steps or None, figures="")
    # without the first two parts of the line: the bar already shows the label and the step
    figures = ", ".join([state, *progress.line("", state, snapshot).split(", ")[2:]])
    bars.update(run.bar, total=snapshot.steps or None, completed=snapshot.step, figures=escape(figures))
