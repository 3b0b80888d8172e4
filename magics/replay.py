"""``%dist_replay``: the step at which a number stopped being finite, once more."""

from __future__ import annotations

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.words import parse
from workbench.run.api import Run
from workbench.run.replay import Replay


@magics_class
class ReplayMagics(Magics):
    """Replays from a notebook."""

    @magic_arguments()
    @argument("run", metavar="RUN", nargs="?", help="a run directory or a run's name (default: the newest run)")
    @argument("--step", type=int, metavar="N", help="the step (default: the first that was kept)")
    @argument("--rank", type=int, metavar="R", help="the rank (default: where the fault began)")
    @line_magic
    def dist_replay(self, line: str) -> Replay:
        """Run a kept step's forward and backward pass again: its batch, random state and weights, on live ranks.

        A step is kept when its loss or a gradient was not finite. The result names the module that made the first such
        number, describes its input, and says whether the loss is the same in every bit.
        """
        arguments = parse(self.dist_replay, line)
        return Run(arguments.run).replay(arguments.step, arguments.rank)
