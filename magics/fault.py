"""``%dist_fault``: faults on purpose."""

from __future__ import annotations

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.cluster import TARGETS, current_session
from magics.words import parse
from workbench.cluster.faults import FAULTS, fault
from workbench.cluster.hosts.placement import parse_ranks


@magics_class
class FaultMagics(Magics):
    """Bring faults about, to see what they look like."""

    @magic_arguments()
    @TARGETS
    @argument(
        "--for", dest="for_s", type=float, default=5.0, metavar="SECONDS", help="how long a delay lasts (default: 5)"
    )
    @argument("fault", choices=tuple(FAULTS), help="kill, stop, continue, delay, drop (connections) or nan")
    @line_magic
    def dist_fault(self, line: str) -> None:
        """Bring a fault about in ranks, also while they train: to learn, or to see that a training survives it.

        Acts on ranks of this session only. ``%dist_why`` tells what came of it.
        """
        arguments = parse(self.dist_fault, line)
        session = current_session()
        print(fault(session, arguments.fault, parse_ranks(arguments.targets, session.n), for_s=arguments.for_s))
