"""Where the notebooks are: beside the package in a source checkout, inside it when installed from a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from workbench import errors
from workbench.errors import WorkbenchError

QUICKSTART = "01_quickstart.ipynb"
#: the folder of cells that stand in files of their own, beside the notebooks
CELLS = "extending"


def folder() -> Path:
    """The folder of the notebooks; ``WorkbenchError`` when this installation has none."""
    package = Path(errors.__file__).resolve().parent
    for place in (package.parent / "notebooks", package / "notebooks"):
        if (place / QUICKSTART).is_file():
            return place
    raise WorkbenchError(f"no {QUICKSTART} beside or in {package}: install dist-workbench again")


def copied_to(target: Path) -> Path:
    """A writable copy of the notebooks, and of the cells that they run, in ``target``; files that are there already
    stay as they are."""
    source = folder()
    for file in sorted([*source.glob("*.ipynb"), *source.glob(f"{CELLS}/*.py")]):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            shutil.copyfile(file, copy)
    return target
