"""``%dist_who``: the variables that live on ranks."""

from __future__ import annotations

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.cluster import TARGETS, current_session
from magics.words import parse
from workbench.cluster.hosts.placement import parse_ranks
from workbench.cluster.names.ask import names_on
from workbench.cluster.names.table import NamesTable


@magics_class
class NamesMagics(Magics):
    """Show what lives on ranks."""

    @magic_arguments()
    @TARGETS
    @argument("names", nargs="*", help="variables of the ranks (default: all that cells defined, except modules)")
    @line_magic
    def dist_who(self, line: str) -> NamesTable:
        """Show the variables of ranks with type, shape, dtype, device and size, and whether ranks differ.

        Values are compared by fingerprints on the ranks; large tensors by a million of their elements.
        """
        arguments = parse(self.dist_who, line)
        session = current_session()
        return names_on(session, arguments.names, parse_ranks(arguments.targets, session.n))
