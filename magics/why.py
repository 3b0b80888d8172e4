"""``%dist_why``: what each rank does, and why ranks do not go on. ``%dist_debug``: the debugger of ranks."""

from __future__ import annotations

import sys

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.cluster import TARGETS
from magics.words import parse
from workbench.cluster.session import Session
from workbench.diagnosis.diagnosis import Diagnosis
from workbench.run.debug import debug
from workbench.run.why import why


@magics_class
class WhyMagics(Magics):
    """Explain ranks that hang."""

    @magic_arguments()
    @argument("run", metavar="RUN", nargs="?", help="a run's name or directory (default: the ranks that are up)")
    @line_magic
    def dist_why(self, line: str) -> Diagnosis:
        """Tell where each rank is, who waits for whom, and what keeps the ranks from going on.

        The answer is a ``Diagnosis``: a sentence, and folded below it a table and the Python stacks of all threads of
        each rank, also of one whose native code holds the interpreter's lock. While a cell blocks the notebook,
        ``workbench why`` in a terminal tells the same.
        """
        run = parse(self.dist_why, line).run
        found = why(run)
        if run is None and Session.current() is None:
            print("this notebook has no ranks: the answer is about your newest ranks on this host", file=sys.stderr)
        return found

    @magic_arguments()
    @TARGETS
    @argument("run", metavar="RUN", nargs="?", help="a run's name or directory (default: the ranks that are up)")
    @line_magic
    def dist_debug(self, line: str) -> None:
        """Type commands of pdb to ranks that ``breakpoint()`` has stopped, until they go on.

        Commands go to all ranks that have stopped; ``@1`` chooses one, ``@all`` all again, and ``@1 w`` asks one. Each
        has its own stack and variables. Ctrl-C lets the ranks go on, past further breakpoints of the training. When no
        rank has stopped, the debugger opens where the last cell or training failed (post-mortem). A ``%%dist`` cell
        asks by itself; while the notebook is blocked, ``workbench debug`` in a terminal does the same.
        """
        arguments = parse(self.dist_debug, line)
        debug(arguments.run, arguments.targets)
