"""``%dist_runs`` and ``%dist_compare``: the runs that were kept, and some of them beside each other."""

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
    """Runs that were kept."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("--last", type=int, metavar="N", help="the newest N only")
    @argument("--sort", metavar="COLUMN", default="when", help="sort by a column (default: when)")
    @argument("--reverse", action="store_true", help="largest, or newest, first")
    @argument("--name", action="append", metavar="PATTERN", help="runs with such a name, such as sweep-*")
    @argument("--state", action="append", metavar="STATE", help="runs in this state")
    @argument("--tag", action="append", metavar="TAG", help="runs with this tag")
    @argument("--where", action="append", metavar="COND", help="a condition such as best_loss<2.5")
    @line_magic
    def dist_runs(self, line: str) -> None:
        """Show the runs of $WORKBENCH_HOME (default: ./runs) in a live table.

        A click on a head sorts, the field filters, a double click on tags or notes changes them, and the boxes choose
        what to compare. In a terminal: a plain table. ``workbench.runs()`` gives the same as a DataFrame.
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
        help="runs by name or directory, or TensorBoard files (default: the newest two runs)",
    )
    @argument("--x", metavar="AXIS", default="step", help="lay curves over step (default), tokens, time or bytes")
    @argument("--tag", metavar="SCALAR", default="", help="the scalar of TensorBoard files that is the training loss")
    @line_magic
    def dist_compare(self, line: str) -> Comparison:
        """Compare runs: curves laid over each other, what differs, speed-up, and whether it is more than seed noise.

        Returns a ``Comparison``, which shows itself as tables: ``.table()``, ``.curves()``, ``.differences_table()``,
        ``.tests``, ``.scaling``. Repeats are runs of the same spec apart from ``--seed``.
        """
        given = parse(self.dist_compare, line)
        found = compare(given.runs or subject.newest_two(), given.x, tag=given.tag)
        if widgets.available():
            from widgets.overlay import StaticFigures
            from workbench.history import curves

            title = f"Curves of {', '.join(s.label for s in found.subjects)}"
            StaticFigures(curves.figures(found), picture=curves.picture(found), title=title).show()
        return found
