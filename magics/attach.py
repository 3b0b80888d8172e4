"""``%dist_attach``: find a run that outlives the kernel that started it."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

import widgets
from magics.words import parse
from workbench.run import detached
from workbench.run.api import Run


@magics_class
class AttachMagics(Magics):
    """Attach to detached runs."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("run", metavar="RUN", nargs="?", help="a run's name or directory (default: the newest detached run)")
    @argument(
        "--end", action="store_true", help="end its processes at once, without a checkpoint (%%dist_stop writes one)"
    )
    @argument("--quiet", action="store_true", help="no panel")
    @line_magic
    def dist_attach(self, line: str) -> Run:
        """Attach to a run that was started with ``--detach``: shows its panel and returns the ``Run``.

        All controls work as in the notebook that started it. A run of another kernel can be attached to as well; it
        ends with that kernel.
        """
        arguments = parse(self.dist_attach, line)
        run = detached.attach(arguments.run)
        if arguments.end:
            run.end()
            print(f"the processes of {run.name} have ended")
        else:
            print(detached.told(run))
        if widgets.available() and not arguments.quiet:
            widgets.watch(run)
        return run
