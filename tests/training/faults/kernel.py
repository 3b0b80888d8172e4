"""A notebook of its own, which the tests kill: ``python -m tests.training.faults.kernel MAGIC LINE CELL``."""

from __future__ import annotations

import sys
import time

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

if __name__ == "__main__":
    config = Config({"HistoryManager": {"enabled": False}, "Workbench": {"warm": False}})
    shell = InteractiveShell.instance(config=config)
    shell.run_line_magic("load_ext", "workbench")
    shell.run_line_magic("dist_up", "-n 2 --framework torch")
    shell.run_cell_magic(*sys.argv[1:4])
    print("idle", flush=True)
    time.sleep(600)
