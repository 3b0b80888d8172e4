"""``%dist_plans``: what each rank will hold under each plan, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

import widgets
from magics.train import run_flags
from magics.words import parse
from workbench.core import flags
from workbench.run.planning.options import OPTIONS
from workbench.run.planning.plans import plans
from workbench.run.planning.shown import Plans


def _plan_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of plans as magic arguments."""
    for name, keywords in reversed(OPTIONS):
        function = argument(name, **keywords)(function)
    return function


@magics_class
class PlansMagics(Magics):
    """Compare parallel plans before anything is trained."""

    shell: InteractiveShell

    @magic_arguments()
    @_plan_flags
    @run_flags
    @line_cell_magic
    def dist_plans(self, line: str, cell: str | None = None) -> Plans:
        """Predict what each rank holds and sends under every plan, and show the plans, the best first.

        It takes the flags of ``%dist_train``, in the line form and in the cell form: ``%dist_plans stdlib-llama -n 4``.
        Options of the plan that are given (``--plugin``, ``--tp``, ``--pp``, ``--framework``) are kept, the others are
        varied. Nothing is trained without ``--try``. Returns ``Plans``, which has ``.table()``, ``.ranks_table()``,
        ``.traffic_table()``, ``.chosen`` and ``.why``.
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
