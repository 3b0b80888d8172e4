"""``%dist_model``: the trained model of a run in the notebook."""

from __future__ import annotations

from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments

from magics.cluster import check_name
from magics.words import parse
from workbench.run.api import Run
from workbench.rundir import checkpoints


@magics_class
class ModelMagics(Magics):
    """Bring trained weights back."""

    shell: InteractiveShell

    @magic_arguments()
    @argument(
        "run",
        metavar="RUN[@STEP]",
        nargs="?",
        help="RUN, RUN@STEP or RUN@best (default: the newest run and its newest checkpoint)",
    )
    @argument("--into", metavar="NAME", help="assign to this variable of the notebook instead of returning")
    @argument(
        "--save", metavar="DIR", help="write the model so that from_pretrained of the transformers library can load it"
    )
    @line_magic
    def dist_model(self, line: str) -> Any:
        """Return the trained model of a run, whole and on the CPU: ``model = %dist_model``.

        The weights are those of a checkpoint, whatever plan trained them. The run's recipe or cell builds the model, so
        a cell is run in the notebook's process, in a namespace of its own; ``Run(...).load_model(model)`` fills a
        model of yours instead.
        """
        arguments = parse(self.dist_model, line)
        if arguments.into is not None:
            check_name(arguments.into, "--into")
        name, step = checkpoints.split(arguments.run) if arguments.run else (None, checkpoints.NEWEST)
        run = Run(name)
        chosen = None if step == checkpoints.NEWEST else step
        if arguments.save is not None:
            print(f"written to {run.save_pretrained(arguments.save, step=chosen)}")
            return None
        model = run.load_model(step=chosen)
        if arguments.into is None:
            return model
        self.shell.user_ns[arguments.into] = model
        return None
