"""``%dist_plans``: what each rank will hold under each plan, before anything is trained. ``%dist_lab``: communication
algorithms, or frameworks, compared by training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

import widgets
from magics.train import run_flags
from magics.verify import ProgressBar
from magics.words import parse
from workbench.core import flags
from workbench.run.lab.lab import lab
from workbench.run.lab.options import OPTIONS as LAB_OPTIONS
from workbench.run.lab.result import Lab
from workbench.run.planning.options import OPTIONS
from workbench.run.planning.plans import plans
from workbench.run.planning.shown import Plans


def _flags(options: Sequence[tuple[str, dict[str, Any]]]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Flags as magic arguments."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, keywords in reversed(options):
            function = argument(name, **keywords)(function)
        return function

    return declare


@magics_class
class PlansMagics(Magics):
    """Compare parallel plans before anything is trained."""

    shell: InteractiveShell

    @magic_arguments()
    @_flags(OPTIONS)
    @run_flags
    @line_cell_magic
    def dist_plans(self, line: str, cell: str | None = None) -> Plans:
        """Predict what each rank holds and sends under every plan, and show the plans, the best first.

        It takes the flags of ``%dist_train``, in the line form and in the cell form: ``%dist_plans stdlib-llama -n 4``.
        Options of the plan that are given (``--framework``, ``--plugin``, ``--tp``, ``--pp``, ``--cp``) are kept, the
        others are varied. Nothing is trained without ``--try``. Returns ``Plans``, which has ``.table()``,
        ``.ranks_table()``, ``.traffic_table()``, ``.chosen`` and ``.why``.
        """
        arguments = parse(self.dist_plans, line)
        source = None if cell is None else self.shell.transform_cell(cell)
        found = plans(
            flags.options_of(arguments),
            config=arguments.config,
            cell=source,
            memory=arguments.memory,
            calibrate=not arguments.no_calibrate,
            tries=arguments.tries or 0,
        )
        if found.forecasts and widgets.available():
            from widgets.overlay import StaticFigures

            title = f"Memory of {len(found.forecasts)} plans"
            StaticFigures(found.figures(), picture=found.picture(), title=title).show()
        return found

    @magic_arguments()
    @_flags(LAB_OPTIONS)
    @run_flags
    @line_cell_magic
    def dist_lab(self, line: str, cell: str | None = None) -> Lab | None:
        """Compare communication algorithms (gradient compression), or frameworks: train with each, with the same data
        and seeds, and compare the time and the bytes to a loss, or the steps a second, memory and losses.

        It takes the flags and the cell of ``%dist_train``: ``%dist_lab stdlib-llama -n 2 --algorithms
        ddp,bf16,powersgd:4 --seeds 3``, or ``%dist_lab stdlib-llama --plan dp2 --frameworks colossal,torch``. Returns a
        ``Lab``: sentences, a table (``.table()``: one row per training) and figures of the loss over time, bytes and
        steps. The runs are kept. Ctrl-C ends the training; those that have ended are kept.
        """
        arguments = parse(self.dist_lab, line)
        source = None if cell is None else self.shell.transform_cell(cell)
        bar = ProgressBar()
        try:
            found = lab(
                flags.options_of(arguments),
                algorithms=arguments.algorithms,
                frameworks=arguments.frameworks,
                seeds=arguments.seeds,
                target=arguments.target,
                config=arguments.config,
                cell=source,
                progress=bar.tell,
            )
        except KeyboardInterrupt:
            print("the lab was stopped: %dist_runs has the runs that have ended")
            return None
        finally:
            bar.close()
        if len(found.compared()) > 1 and widgets.available():
            from widgets.overlay import StaticFigures

            StaticFigures(found.figures(), picture=found.picture(), title=f"Loss of the {found.compares}s").show()
        return found
