"""``%dist_frameworks``: what each plan of each framework can do. ``%%dist_algorithm``: an algorithm of one's own."""

from __future__ import annotations

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.words import parse
from workbench.core import algorithms
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

    @magic_arguments()
    @argument("name", help="what --algorithm calls it")
    @cell_magic
    def dist_algorithm(self, line: str, cell: str) -> None:
        """Define a communication algorithm (gradient compression), which ``%dist_train --algorithm NAME`` then uses.

        The cell defines a class of ``Compressor``, with ``encode`` and ``decode`` of a flat gradient, or of
        ``Exchange``. Ranks run the cell; ``torch`` and ``dist`` are there.
        """
        name = parse(self.dist_algorithm, line).name
        algorithms.define(name, cell)
        print(f"--algorithm {name} (or {name}+ef, with error feedback) uses {algorithms.algorithm(name).code}")
