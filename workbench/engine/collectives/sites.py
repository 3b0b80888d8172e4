"""The line of the user's code that a collective was called from."""

from __future__ import annotations

import linecache
import sys
import sysconfig
from pathlib import Path
from types import FrameType

_KINDS = ("purelib", "platlib", "stdlib")
#: where no code of the user stands: this package, installed ones, and Python's own
_LIBRARIES = (
    f"{Path(__file__).resolve().parents[2]}/",
    *(f"{sysconfig.get_path(name)}/" for name in _KINDS),
    "<frozen",
)


def calling_frame() -> FrameType:
    """Returns the innermost frame that is neither of an installed package nor of this one; else the outermost."""
    last: FrameType = sys._getframe(1)
    frame: FrameType | None = last
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            return frame
        last, frame = frame, frame.f_back
    return last


def in_words(frame: FrameType) -> str:
    """Returns ``line 3 of the cell: dist.all_reduce(x)``, or the file, line and function with the code."""
    file, line = frame.f_code.co_filename, frame.f_lineno
    code = linecache.getline(file, line).strip()
    is_cell = "ipykernel" in file or "ipython-input" in file or file.endswith("cell.py")
    where = f"line {line} of the cell" if is_cell else f"{Path(file).name}:{line} in {frame.f_code.co_name}"
    return f"{where}: {code[:80]}" if code else where
