"""The line of the user's code that a collective was called from."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

_PACKAGE = str(Path(__file__).resolve().parents[2]) + "/"


def _library_paths() -> tuple[str, ...]:
    names = ("torch", "colossalai", "transformers", "accelerate", "deepspeed", "lightning")
    found = [Path(str(sys.modules[name].__file__)).parent for name in names if name in sys.modules]
    return (_PACKAGE, *(f"{path}/" for path in found), "<frozen")


def calling_frame() -> FrameType:
    """Returns the innermost frame that is neither of torch, a framework, nor of this package; else the outermost one
    of these."""
    libraries = _library_paths()
    frame: Any = sys._getframe(1)
    last = frame
    while frame is not None:
        if not frame.f_code.co_filename.startswith(libraries):
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
