"""``%dist_runs`` and ``%dist_compare``: list and compare runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

import widgets
from magics.words import parse
from workbench.errors import ConfigError
from workbench.history import list_options, listing, sources
from workbench.history.compare import Comparison, compare
from workbench.history.index import RunIndex
from workbench.run.inside_comparison import InsideComparison, compare_inside


def _list_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a list of runs as magic arguments."""
    for flag, keywords in reversed(list_options.OPTIONS):
        function = argument(flag, **keywords)(function)
    return function


@magics_class
class RunsMagics(Magics):
    """List and compare runs."""

    shell: InteractiveShell

    @magic_arguments()
    @_list_options
    @line_magic
    def dist_runs(self, line: str) -> None:
        """Show the runs of $WORKBENCH_HOME (default: ./runs) in a live table.

        Click a column's header to sort, type into the field to filter, double-click tags or notes to edit them, and
        tick boxes to select runs to compare. In a terminal the table is plain text. ``workbench.runs()`` returns the
        runs as a DataFrame.
        """
        given = vars(parse(self.dist_runs, line))
        index = RunIndex()
        rows = list_options.selected(index.rows(), given)
        if not rows:
            print(f"no runs in {index.home}{' that match' if list_options.has_filter(given) else ''}")
        elif widgets.available():
            from widgets.runs import RunsTable

            RunsTable(index, lambda found: list_options.selected(found, given)).show()
        else:
            print(listing.text_table(rows))

    @magic_arguments()
    @argument(
        "runs",
        metavar="RUN",
        nargs="*",
        help="names or directories of runs, or TensorBoard files (default: the newest two runs)",
    )
    @argument("--x", metavar="AXIS", default="step", help="axis of the curves: step (default), tokens, time or bytes")
    @argument("--tag", metavar="SCALAR", default="", help="the scalar of TensorBoard files that is the training loss")
    @argument(
        "--inside",
        action="store_true",
        help="compute one batch in the models of two runs, with the same weights: the first module that differs",
    )
    @argument(
        "--ranks",
        metavar=("A", "B"),
        nargs=2,
        type=int,
        help="with --inside: the first rank that computes each of two runs, or twice the only one",
    )
    @line_magic
    def dist_compare(self, line: str) -> Comparison | InsideComparison:
        """Compare runs: their curves, different options, speed-up, and whether a difference exceeds seed noise.

        Returns a ``Comparison``, which is displayed as tables and has ``.table()``, ``.curves()``,
        ``.differences_table()``, ``.tests`` and ``.scaling``. Runs whose specs differ only in ``--seed`` are repeats.
        ``--inside A B`` is ``workbench.compare_inside``: it uses the live ranks, and ``A@STEP`` names a checkpoint.
        ``--inside A --ranks 0 1`` compares two ranks.
        """
        given = parse(self.dist_compare, line)
        if given.inside:
            return _compared_inside(given.runs or ([] if given.ranks else sources.newest_two()), given.ranks)
        if given.ranks:
            raise ConfigError("--ranks goes with --inside", field="--ranks")
        found = compare(given.runs or sources.newest_two(), given.x, tag=given.tag)
        if widgets.available():
            from widgets.overlay import StaticFigures
            from workbench.history import curves

            title = f"Curves of {', '.join(s.label for s in found.compared)}"
            StaticFigures(curves.figures(found), picture=curves.picture(found), title=title).show()
        return found


def _compared_inside(names: Sequence[str | Path], ranks: Sequence[int] | None = None) -> InsideComparison:
    if not (len(names) == 2 or (len(names) == 1 and ranks)):
        raise ConfigError(
            f"--inside compares two runs, not {len(names)}; --ranks A B compares two ranks with one run", field="RUN"
        )
    return compare_inside(*names, ranks=(ranks[0], ranks[1]) if ranks else None)
