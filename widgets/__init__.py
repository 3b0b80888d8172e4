"""Widgets of the notebook: the live panel of a run, the panel of the machine, the table of runs, static figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from widgets.machine import MachinePanel
    from widgets.panel.panel import Panel
    from workbench.run.api import Run


def available() -> bool:
    """Return whether widgets can be shown: in a Jupyter kernel, but not in a terminal or a script."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def watch(*runs: Run | str | Path) -> Panel | MachinePanel:
    """Show the live panel of one run, of two runs side by side, or (without a run) of the machine, and return it.

    A run is a ``Run``, a run directory or a run's name. ``close()`` of the returned panel removes it. Raises
    ``RunDirectoryError`` for a run that does not exist, and ``ValueError`` for more than two runs.
    """
    if not runs:
        from widgets.machine import MachinePanel

        machine = MachinePanel()
        machine.show()
        return machine
    from widgets.panel.panel import Panel

    panel = Panel(*_opened(runs))
    panel.show()
    return panel


def describe(*runs: Run | str | Path) -> str:
    """Describe runs, or without a run the machine, in a few lines of text, for use where no widget can be shown."""
    if runs:
        return "\n".join(repr(run) for run in _opened(runs))
    from widgets.machine import look

    seen = look()
    gib = 2**30
    memory = f"memory {seen['memory']['used'] / gib:.1f} of {seen['memory']['total'] / gib:.1f} GiB"
    cores = f"{len(seen['cores'])} cores, load {seen['load'][0]:.2f}"
    ranks = f"{len(seen['ranks'])} ranks up" if seen["ranks"] else "no ranks are up"
    return "\n".join([f"{seen['host']}: {cores}, {memory}, {len(seen['gpus'])} GPUs, {ranks}", *seen["warnings"]])


def _opened(runs: tuple[Run | str | Path, ...]) -> list[Run]:
    from workbench.run.api import Run

    return [run if isinstance(run, Run) else Run(run) for run in runs]
