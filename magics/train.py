"""``%dist_train``: train a recipe or a spec file (line form), or the model that a cell defines (cell form)."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, argument_group, magic_arguments

import widgets
from magics.words import parse
from widgets.page.serve import wait_serving_comms
from workbench.cluster.base.interrupts import deferred_interrupt
from workbench.cluster.session import Session
from workbench.core import flags
from workbench.errors import ConfigError, RunError
from workbench.run import api
from workbench.run.api import Run
from workbench.run.debug import asked_while_waiting

if TYPE_CHECKING:
    from widgets.panel.panel import Panel


def run_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """All flags of a run as magic arguments, in the order and the groups of ``flags.FLAGS``."""
    declared: list[Callable[..., Any]] = []
    for title, members in itertools.groupby(flags.FLAGS, key=lambda flag: flag.group):
        declared += [argument_group(title), *(argument(*flag.names, **flag.keywords()) for flag in members)]
    return functools.reduce(lambda wrapped, declare: declare(wrapped), reversed(declared), function)


@magics_class
class TrainMagics(Magics):
    """Train from a notebook."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("--config", metavar="FILE", help="a spec file (TOML); flags override it")
    @run_flags
    @argument_group("in the notebook")
    @argument(
        "--wait",
        action="store_true",
        help="wait until the run ends, with a live panel; Ctrl-C stops the run, pressed again also one that hangs",
    )
    @argument("--detach", action="store_true", help="the run goes on when this kernel ends; %%dist_attach finds it")
    @argument("--quiet", action="store_true", help="no panel and no progress lines")
    @line_cell_magic
    def dist_train(self, line: str, cell: str | None = None) -> Run:
        """Train a model across ranks. Returns the ``Run`` at once and shows its live panel. (``run = %dist_train ...``;
        after a cell with ``%%dist_train``, ``run = _``.)

        Line form: ``%dist_train stdlib-llama -n 2`` (or ``--recipe stdlib-llama``), ``%dist_train --config spec.toml``.
        Cell form: the cell runs on every rank and defines ``model``, ``optimizer``, ``dataset`` or ``dataloader``, and
        ``loss_fn(model, batch)``, ``criterion(outputs, target)`` or ``train_step(model, optimizer, batch)``;
        optionally ``lr_scheduler`` (with ``lr_scheduler_every`` and ``lr_scheduler_metric``), ``eval_dataset`` or
        ``eval_dataloader``, ``metrics``, ``on_step(step, values)`` and ``on_epoch(epoch, values)``.
        """
        arguments = parse(self.dist_train, line)
        source = None if cell is None else self.shell.transform_cell(cell)
        if arguments.detach and arguments.wait:
            raise ConfigError("--detach and --wait contradict each other: leave one out", field="--detach")
        options = flags.options_of(arguments)
        run = api.train(options, config=arguments.config, cell=source, detach=arguments.detach)
        if arguments.detach:
            print(f"{run.name} has a process of its own and outlives this kernel: %dist_attach {run.path}")
        lines = not arguments.quiet and not widgets.available()
        if arguments.wait:
            _wait(run, shown=not arguments.quiet and not lines, lines=lines)
        elif lines:
            _lines().follow_in_background(run)
        elif not arguments.quiet:
            _shown_panel(run)
        return run


def _lines() -> ModuleType:
    """Import the module that prints progress lines, late, so that the extension loads quickly."""
    from workbench.terminal import follow

    return follow


def _shown_panel(run: Run) -> Panel:
    from widgets.panel.panel import Panel

    panel = Panel(run)
    panel.show()
    return panel


def _wait(run: Run, *, shown: bool, lines: bool) -> None:
    """Wait until the run ends, with its panel if that is to be ``shown``. Ctrl-C stops the run after its current step;
    a second one interrupts its ranks, which also ends a step that never ends; a third one stops the waiting."""
    panel = None
    try:
        panel = _shown_panel(run) if shown else None
        _until_ended(run, lines=lines)
    except KeyboardInterrupt:
        try:
            print("stopping after this step (press again to interrupt it)", file=sys.stderr, flush=True)
            with suppress(RunError), deferred_interrupt():  # the run may just have ended by itself
                run.stop()
            _until_ended(run, lines=lines)
        except KeyboardInterrupt:
            session = Session.current()
            if session is not None:
                session.interrupt_job()
            _until_ended(run, lines=lines)
    if panel is not None:
        panel.finish()
    run.raise_if_failed()


def _until_ended(run: Run, *, lines: bool) -> None:
    ended = asked_while_waiting(run)
    if lines:
        _lines().follow_lines(run, ended)
    else:
        wait_serving_comms(ended)
