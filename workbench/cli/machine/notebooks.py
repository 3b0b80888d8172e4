"""Where the notebooks are: beside the package in a source checkout, inside it when installed from a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from workbench import errors
from workbench.errors import WorkbenchError

QUICKSTART = "01_quickstart.ipynb"


def folder() -> Path:
    """The folder of the notebooks; ``WorkbenchError`` when this installation has none."""
    package = Path(errors.__file__).resolve().parent
    for place in (package.parent / "notebooks", package / "notebooks"):
        if (place / QUICKSTART).is_file():
            return place
    raise WorkbenchError(f"no {QUICKSTART} beside or in {package}: install dist-workbench again")


def copied_to(target: Path) -> Path:
    """A writable copy of the notebooks in ``target``; files that are there already stay as they are."""
    target.mkdir(parents=True, exist_ok=True)
    for notebook in sorted(folder().glob("*.ipynb")):
        if not (target / notebook.name).exists():
            shutil.copyfile(notebook, target / notebook.name)
    return target
