"""Open JupyterLab on the tutorial notebooks, or on a copy in ./notebooks if they are read-only (installed package)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

NAME = "lab"
HELP = "open JupyterLab on the tutorial notebooks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``workbench lab``."""
    parser.add_argument("--dir", type=Path, metavar="DIR", help="copy the notebooks into this folder and open it")
    parser.add_argument("jupyter", nargs="*", metavar="-- ARG", help="arguments for jupyter lab, after --")


def place(wanted: Path | None) -> Path:
    """The folder that JupyterLab opens."""
    from workbench.cli.machine import notebooks

    source = notebooks.folder()
    if wanted is None and os.access(source, os.W_OK) and "site-packages" not in source.parts:
        return source
    return notebooks.copied_to(wanted or Path.cwd() / "notebooks")


def run(arguments: argparse.Namespace) -> int:
    """Replace this process by JupyterLab; does not return."""
    folder = place(arguments.dir)
    print(f"JupyterLab on {folder}; open 01_quickstart.ipynb there", flush=True)
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}", *arguments.jupyter]
    os.execv(sys.executable, command)
