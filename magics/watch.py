"""``%dist_watch``: the live panel of a run, of two runs, or of the machine."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

import widgets
from magics.words import parse


@magics_class
class WatchMagics(Magics):
    """Show live panels."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("runs", metavar="RUN", nargs="*", help="one or two run directories or names (default: the machine)")
    @line_magic
    def dist_watch(self, line: str) -> None:
        """Show the live panel of a run, of two runs side by side, or (without a run) of this machine and its ranks."""
        runs = parse(self.dist_watch, line).runs
        if widgets.available():
            widgets.watch(*runs)
        else:
            print(widgets.describe(*runs))
