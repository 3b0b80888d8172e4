"""``%dist_set``, and one magic for each act that ``workbench.core.controls`` declares, such as ``%dist_pause``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.words import parse
from workbench.core import controls
from workbench.core.controls import Control
from workbench.core.flags import ASSIGNMENT
from workbench.run.api import Run, newest_live

_RUN = argument("--run", metavar="RUN", help="a run's name or directory (default: the newest running run)")
_CHANGES = argument("changes", nargs="+", metavar=ASSIGNMENT, help="for example lr=1e-4")


@magics_class
class ControlMagics(Magics):
    """Control a run from a notebook: ``%dist_set``, and a magic for each declared act."""

    def __init__(self, shell: Any = None, **options: Any) -> None:
        super().__init__(shell, **options)
        self.magics["line"] |= {f"dist_{control.name}": act_magic(control) for control in controls.acts()}

    @magic_arguments()
    @_RUN
    @_CHANGES
    @line_magic
    def dist_set(self, line: str) -> Run | None:
        """Change settings of a running run: lr=1e-4, lr=x0.5, lr=schedule, clip=1.0, or knobs that it declares.

        ``plan=zero2`` or ``plan='tp2 pp2'``, alone: go on under another plan, as a new run, which is returned.
        """
        arguments = parse(self.dist_set, line)
        run = _run(arguments.run)
        changes = controls.assignments(arguments.changes)
        if list(changes) == ["plan"]:
            return run.switch(changes["plan"])
        run.set(**changes)
        print(f"{run.name}: {', '.join(f'{name} = {value}' for name, value in changes.items())} from the next step")
        return None


def act_magic(control: Control) -> Callable[[str], Run | None]:
    """Make the magic of one act: it parses its arguments, sends the command and prints a confirmation."""

    def magic(line: str) -> Run | None:
        arguments = parse(magic, line)
        run = _run(arguments.run)
        if control.starts_run:
            return run.branch(**controls.assignments(arguments.changes))
        value = getattr(arguments, "value", None)
        if isinstance(value, list):
            value = " ".join(value)
        run.ask(control.name, value or None)
        print(f"{run.name}: {control.name}{f' {value}' if value else ''} after this step")
        return None

    magic.__name__ = magic.__qualname__ = f"dist_{control.name}"
    magic.__doc__ = f"{control.help[0].upper()}{control.help[1:]}."
    wrapped = _RUN(magic)
    if control.starts_run:
        wrapped = _CHANGES(wrapped)
    elif control.kind != "none":
        optional = {"nargs": "?"} if control.default is not None else {}
        if control.has_blanks:
            optional = {"nargs": "+"}
        value = argument("value", metavar=control.unit.upper() or "VALUE", help=control.allowed(), **optional)
        wrapped = value(wrapped)
    magic = magic_arguments()(wrapped)
    return magic


def _run(name: str | None) -> Run:
    """Return the run called ``name``; without a name the newest run that has not ended, or else the newest run."""
    if name:
        return Run(name)
    return newest_live() or Run()
