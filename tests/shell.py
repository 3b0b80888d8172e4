"""An IPython shell that leaves neither itself nor ranks nor a thread behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

#: the history is saved from a thread, which would stay
_NO_HISTORY = Config({"HistoryManager": {"enabled": False}})


@contextmanager
def bare_shell() -> Iterator[InteractiveShell]:
    """A shell without any extension."""
    try:
        yield InteractiveShell.instance(config=_NO_HISTORY)
    finally:
        InteractiveShell.clear_instance()


@contextmanager
def notebook_shell() -> Iterator[InteractiveShell]:
    """A shell with the project's extension; its ranks end with it."""
    with bare_shell() as shell:
        shell.run_line_magic("load_ext", "workbench")
        try:
            yield shell
        finally:
            shell.run_line_magic("dist_down", "")
