"""``%dist_runs`` and ``%dist_compare``: list the runs, and compare some of them."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

import widgets
from magics.words import parse
from workbench.history import listing
from workbench.history import sources as subject
from workbench.history.compare import Comparison, compare
from workbench.history.index import RunIndex
from workbench.history.row import RunRow


@magics_class
class RunsMagics(Magics):
    """List and compare runs."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("--last", type=int, metavar="N", help="the newest N only")
    @argument("--sort", metavar="COLUMN", default="when", help="sort by a column (default: when)")
    @argument("--reverse", action="store_true", help="reverse the order: largest or newest first")
    @argument("--name", action="append", metavar="PATTERN", help="runs whose name matches, for example sweep-*")
    @argument("--state", action="append", metavar="STATE", help="runs in this state")
    @argument("--tag", action="append", metavar="TAG", help="runs with this tag")
    @argument("--where", action="append", metavar="COND", help="runs that meet a condition, for example best_loss<2.5")
    @line_magic
    def dist_runs(self, line: str) -> None:
        """Show the runs of $WORKBENCH_HOME (default: ./runs) in a live table.

        Click a column's head to sort, type in the field to filter, double-click tags or notes to edit them, and tick
        boxes to choose runs to compare. In a terminal the table is plain text. ``workbench.runs()`` returns a
        DataFrame.
        """
        given = parse(self.dist_runs, line)

        def chosen(rows: list[RunRow]) -> list[RunRow]:
            fitting = listing.choose(
                rows,
                names=given.name or [],
                states=given.state or [],
                tags=given.tag or [],
                where=given.where or [],
            )
            newest = fitting[-given.last :] if given.last else fitting
            return listing.sort(newest, given.sort, descending=given.reverse)

        index = RunIndex()
        rows = chosen(index.rows())
        if not rows:
            print(f"no runs in {index.home}")
        elif widgets.available():
            from widgets.runs import RunsTable

            RunsTable(index, chosen).show()
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
    @line_magic
    def dist_compare(self, line: str) -> Comparison:
        """Compare runs: their curves, different options, speed-up, and whether a difference exceeds seed noise.

        Returns a ``Comparison``, which shows itself as tables and has ``.table()``, ``.curves()``,
        ``.differences_table()``, ``.tests`` and ``.scaling``. Runs whose specs differ in ``--seed`` only are repeats.
        """
        given = parse(self.dist_compare, line)
        found = compare(given.runs or subject.newest_two(), given.x, tag=given.tag)
        if widgets.available():
            from widgets.overlay import StaticFigures
            from workbench.history import curves

            title = f"Curves of {', '.join(s.label for s in found.subjects)}"
            StaticFigures(curves.figures(found), picture=curves.picture(found), title=title).show()
        return found
