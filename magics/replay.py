"""``%dist_replay``: replay a recorded step whose loss or gradient was not finite."""

from __future__ import annotations

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.words import parse
from workbench.run.api import Run
from workbench.run.replay import Replay


@magics_class
class ReplayMagics(Magics):
    """Replay a recorded step from a notebook."""

    @magic_arguments()
    @argument("run", metavar="RUN", nargs="?", help="a run directory or a run's name (default: the newest run)")
    @argument("--step", type=int, metavar="N", help="the step (default: the first that was recorded)")
    @argument("--rank", type=int, metavar="R", help="the rank (default: the first with a non-finite number)")
    @line_magic
    def dist_replay(self, line: str) -> Replay:
        """Run the forward and backward pass of a recorded step again, with its batch, random state and weights.

        A step is recorded when its loss or a gradient is not finite. It is replayed on live ranks. The result names the
        module that produced the first non-finite number, describes its input, and says whether the replayed loss
        equals the recorded loss in every bit.
        """
        arguments = parse(self.dist_replay, line)
        return Run(arguments.run).replay(arguments.step, arguments.rank)
