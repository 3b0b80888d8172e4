"""``%dist_verify``: does a plan train the same as one process?"""

from __future__ import annotations

import html
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, argument_group, magic_arguments
from IPython.display import display

from magics.train import run_flags
from magics.words import parse
from workbench.core import flags
from workbench.run.verify import verify
from workbench.run.verify_options import AGAINST_FLAG
from workbench.verification.result import Verification


@magics_class
class VerifyMagics(Magics):
    """Verify plans from a notebook."""

    shell: InteractiveShell

    @magic_arguments()
    @argument("--config", metavar="FILE", help="a spec file (TOML); flags override it")
    @argument_group("verification")
    @argument("--against", **AGAINST_FLAG)
    @run_flags
    @line_cell_magic
    def dist_verify(self, line: str, cell: str | None = None) -> Verification | None:
        """Train a few steps under a plan and under a reference, with the same weights and batches, and compare them.

        Takes the flags and the cell of ``%dist_train``; ``--steps`` (20) are compared. Returns a ``Verification``: a
        verdict in a sentence, the first step, gradient and weight that differ, and the likely cause. A run directory
        keeps it. Ctrl-C ends the trainings and leaves nothing.
        """
        arguments = parse(self.dist_verify, line)
        source = None if cell is None else self.shell.transform_cell(cell)
        bar = ProgressBar()
        try:
            return verify(
                flags.options_of(arguments),
                config=arguments.config,
                cell=source,
                against=arguments.against,
                progress=bar.tell,
            )
        except KeyboardInterrupt:
            print("verification stopped: no results were kept")
            return None
        finally:
            bar.close()


class ProgressBar:
    """A progress bar that is gone at the end."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._last: tuple[str, int] | None = None

    def tell(self, what: str, done: int, steps: int) -> None:
        """Show that ``done`` of all steps are done, and what is trained."""
        if self._last == (what, done):
            return
        self._last = (what, done)
        bar = f'<progress max="{steps}" value="{done}"></progress> {html.escape(what)}: step {done} of {steps}'
        self._show({"text/plain": f"{what}: step {done} of {steps}", "text/html": bar})

    def _show(self, content: dict[str, str]) -> None:
        if self._shown is None:
            self._shown = display(content, raw=True, display_id=True)
        else:
            self._shown.update(content, raw=True)

    def close(self) -> None:
        """Leave nothing of it in the notebook."""
        if self._shown is not None:
            self._show({"text/plain": "", "text/html": ""})
