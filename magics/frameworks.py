"""``%dist_frameworks``: what each plan of each framework can do."""

from __future__ import annotations

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import magic_arguments

from magics.words import parse
from workbench.core.plans.capability_table import CapabilityTable, capability_table


@magics_class
class FrameworkMagics(Magics):
    """Show what plans can do."""

    @magic_arguments()
    @line_magic
    def dist_frameworks(self, line: str) -> CapabilityTable:
        """Show what each plan of each framework can do, and why it cannot do the rest.

        ``yes``: it works. ``no``: it is refused before the run starts. ``?``: not tried yet.
        """
        parse(self.dist_frameworks, line)
        return capability_table()
