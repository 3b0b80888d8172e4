"""The magics, one module per family. A magic parses, calls, returns."""

from __future__ import annotations

import sys

from IPython.core.interactiveshell import InteractiveShell


def load(shell: InteractiveShell) -> None:
    """Register every magic, and start the rank server in the background unless ``c.Workbench.warm`` is False."""
    from magics import complete
    from magics.attach import AttachMagics
    from magics.cluster import ClusterMagics
    from magics.control import ControlMagics
    from magics.fault import FaultMagics
    from magics.frameworks import FrameworkMagics
    from magics.model import ModelMagics
    from magics.names import NamesMagics
    from magics.plans import PlansMagics
    from magics.replay import ReplayMagics
    from magics.report import ReportMagics
    from magics.runs import RunsMagics
    from magics.tracebacks import end_at_the_cell
    from magics.train import TrainMagics
    from magics.verify import VerifyMagics
    from magics.watch import WatchMagics
    from magics.why import WhyMagics
    from workbench.cluster.spare import warm_up
    from workbench.errors import WorkbenchError

    shell.register_magics(
        ClusterMagics,
        NamesMagics,
        TrainMagics,
        AttachMagics,
        VerifyMagics,
        WatchMagics,
        WhyMagics,
        FaultMagics,
        ControlMagics,
        ModelMagics,
        PlansMagics,
        ReplayMagics,
        ReportMagics,
        RunsMagics,
        FrameworkMagics,
    )
    complete.register(shell)
    shell.events.register("post_run_cell", end_at_the_cell)
    if shell.config.get("Workbench", {}).get("warm", True):
        try:
            warm_up()
        except WorkbenchError as error:  # only later starts of ranks need the server, and they try again
            print(f"warning: the rank server could not be started in the background: {error}", file=sys.stderr)
