"""Run by Python when it starts, before the script: begins to watch it. Whatever goes wrong here is told in one line,
and the script starts as ever. A ``sitecustomize`` that the environment has is run too."""

from __future__ import annotations

import os
import sys


def _run_the_next() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != here]
    mine = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if mine is not None:
            sys.modules["sitecustomize"] = mine


def _watch() -> None:
    try:
        from workbench.engine.observed.watched import script

        script.start(os.environ)
    except Exception as error:  # the script is not ours to break
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name == "workbench":
            why = f"workbench is not installed in {sys.executable}"
        print(f"workbench watch: not watched: {why}. The script continues", file=sys.stderr, flush=True)


_run_the_next()
if os.environ.get("WORKBENCH_WATCH"):
    _watch()
