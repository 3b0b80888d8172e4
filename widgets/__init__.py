"""What a notebook shows: the live panel of a run (``panel``), and waiting with it alive (``serve``)."""

from __future__ import annotations


def available() -> bool:
    """Whether widgets can be shown: in a Jupyter kernel, not in a terminal or a script."""
    from IPython.core.getipython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
