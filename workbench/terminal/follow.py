"""Progress of runs in a terminal, from their directories: bars where there is a terminal, lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from workbench.core import background
from workbench.errors import WorkbenchError
from workbench.run.api import Run
from workbench.rundir.state import ENDED, state_of
from workbench.telemetry import progress
from workbench.telemetry.store import Store


@dataclass
class _Followed:
    """One run that is shown: its store, its bar, and the last line that was printed for it."""

    store: Store
    bar: TaskID | None = None
    printed: int = -1
    over: bool = False


def follow(
    find: Callable[[], Iterable[Path]],
    done: Callable[[], bool],
    *,
    every: int = 0,
    interval_s: float = 0.25,
    console: Console | None = None,
    named: Callable[[Path, str], str] = lambda _, name: name,
) -> None:
    """Show every run directory that ``find`` gives until ``done``. Without a terminal: a line per ``every`` steps
    (0: a tenth of the run). ``named``: what a run is called here, by its directory and its name.
    ``KeyboardInterrupt`` passes through; the bars are closed first."""
    console = console or Console()
    followed: dict[Path, _Followed] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=False) as bars:
        while True:
            ended = done()
            for path in find():
                if path not in followed:
                    followed[path] = _Followed(Store(path))
                _show(followed[path], bars, every, ended=ended, named=named)
            if ended:
                return
            time.sleep(interval_s)


def follow_lines(run: Run) -> None:
    """``follow`` one run of this process until its ranks are free, by lines also in a terminal: it may be a prompt."""
    follow(lambda: [run.path], run.ended, every=max(1, run.spec.steps // 20), console=Console(force_terminal=False))


def follow_in_background(run: Run) -> None:
    """``follow_lines`` from a thread, for a prompt that stays usable; a failure's traceback is printed once."""

    def work() -> None:
        try:
            follow_lines(run)
            run.raise_if_failed()
        except WorkbenchError as error:
            print(*error._render_traceback_(), sep="\n", flush=True)

    failed = background.warner(f"the progress of run {run.name!r} is no longer shown, which goes on: see run.status")
    background.thread(work, name=f"progress-{run.name}", failed=failed).start()


def _show(one: _Followed, bars: Progress, every: int, *, ended: bool, named: Callable[[Path, str], str]) -> None:
    if one.over:
        return
    try:
        one.store.refresh()
        spec, now = one.store.spec, progress.snapshot(one.store)
    except WorkbenchError:
        return  # its spec is still being written
    name = named(one.store.run, spec.name)
    state = state_of(one.store.table("events"), spec.plan.ranks)
    one.over = ended or state in ENDED
    if bars.disable:
        stride = every or max(1, spec.steps // 10)
        if one.over or now.step // stride > one.printed:
            one.printed = now.step // stride
            bars.console.print(progress.line(name, state, now), markup=False, highlight=False, soft_wrap=True)
        return
    if one.bar is None:
        one.bar = bars.add_task(escape(name), total=spec.steps, figures="")
    # the bar has the name and the steps already
    figures = ", ".join([state, *progress.line("", state, now).split(", ")[2:]])
    bars.update(one.bar, completed=now.step, figures=escape(figures))
