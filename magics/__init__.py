"""The magics, one module per family. A magic parses, calls, returns."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell


def load(shell: InteractiveShell) -> None:
    """Register every magic, and start warming the ranks' server unless ``c.Workbench.warm`` is False."""
    from magics.cluster import ClusterMagics
    from magics.report import ReportMagics
    from magics.train import TrainMagics
    from magics.watch import WatchMagics
    from workbench.session import warm

    shell.register_magics(ClusterMagics, TrainMagics, ReportMagics, WatchMagics)
    if shell.config.get("Workbench", {}).get("warm", True):
        warm()
