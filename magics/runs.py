"""``%dist_runs`` and ``%dist_compare``: list and compare runs."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

import widgets
from magics.words import parse
from workbench.history import listing, sources
from workbench.history.compare import Comparison, compare
from workbench.history.index import RunIndex
from workbench.history.row import RunRow


@magics_class
class RunsMagics(Magics):
    """List and compare runs."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("--last", type=int, metavar="N", help="show only the newest N runs")
    @argument("--sort", metavar="COLUMN", default="when", help="sort by a column (default: when)")
    @argument("--reverse", action="store_true", help="sort in descending order: largest or newest first")
    @argument(
        "--name", action="append", metavar="PATTERN", help="show only runs whose name matches, for example sweep-*"
    )
    @argument("--state", action="append", metavar="STATE", help="show only runs in this state")
    @argument("--tag", action="append", metavar="TAG", help="show only runs with this tag")
    @argument(
        "--where", action="append", metavar="COND", help="show only runs that meet a condition, such as best_loss<2.5"
    )
    @line_magic
    def dist_runs(self, line: str) -> None:
        """Show the runs of $WORKBENCH_HOME (default: ./runs) in a live table.

        Click a column's header to sort, type into the field to filter, double-click tags or notes to edit them, and
        tick boxes to select runs to compare. In a terminal the table is plain text. ``workbench.runs()`` returns the
        runs as a DataFrame.
        """
        given = parse(self.dist_runs, line)

        def select(rows: list[RunRow]) -> list[RunRow]:
            matching = listing.choose(
                rows,
                names=given.name or [],
                states=given.state or [],
                tags=given.tag or [],
                where=given.where or [],
            )
            newest = matching[-given.last :] if given.last else matching
            return listing.sort(newest, given.sort, descending=given.reverse)

        index = RunIndex()
        rows = select(index.rows())
        if not rows:
            print(f"no runs in {index.home}")
        elif widgets.available():
            from widgets.runs import RunsTable

            RunsTable(index, select).show()
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

        Returns a ``Comparison``, which is displayed as tables and has ``.table()``, ``.curves()``,
        ``.differences_table()``, ``.tests`` and ``.scaling``. Runs whose specs differ only in ``--seed`` are repeats.
        """
        given = parse(self.dist_compare, line)
        found = compare(given.runs or sources.newest_two(), given.x, tag=given.tag)
        if widgets.available():
            from widgets.overlay import StaticFigures
            from workbench.history import curves

            title = f"Curves of {', '.join(s.label for s in found.subjects)}"
            StaticFigures(curves.figures(found), picture=curves.picture(found), title=title).show()
        return found
