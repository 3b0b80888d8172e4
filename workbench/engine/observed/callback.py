"""``workbench.WorkbenchCallback``: one line that observes the ``Trainer`` of transformers or of Lightning."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engine.observed.observe import observe
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.engine.observed.run import ObservedRun


class _Observing:
    """What both trainers call; each calls its own. The loss of a step is that on which ``backward`` was called."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.run: ObservedRun | None = None
        self._asked_to_save = False
        self._counted = 0

    def _ask_to_save(self, step: int) -> None:
        self._asked_to_save = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        """transformers: training begins."""
        name = self.options.get("name") or Path(args.run_name or args.output_dir or "trainer").name
        options = {"on_checkpoint": self._ask_to_save, "steps": state.max_steps, **self.options, "name": name}
        self.run = observe(found["model"], found["optimizer"], **options)

    def on_step_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        """transformers: the optimizer has stepped."""
        if self.run is None:
            return
        if self.run.advance():
            control.should_training_stop = True
            self.run = None
        if self._asked_to_save:
            self._asked_to_save = False
            control.should_save = True

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Lightning: training begins."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"WorkbenchCallback observes one optimizer, and this module has {len(trainer.optimizers)}: use "
                "workbench.observe in training_step, with the one to be watched"
            )
        steps = trainer.estimated_stepping_batches
        known = {"steps": int(steps)} if steps != float("inf") else {}

        def save(step: int) -> Path:
            assert self.run is not None
            path = self.run.path / "lightning" / f"step-{step}.ckpt"
            trainer.save_checkpoint(path)
            return path

        self._counted = trainer.global_step
        model = trainer.strategy.model
        self.run = observe(model, trainer.optimizers[0], **{"on_checkpoint": save, **known, **self.options})

    def on_train_batch_end(self, trainer: Any, *unused: Any) -> None:
        """Lightning: a batch is done, and with it a step unless gradients are accumulated."""
        if self.run is None or trainer.global_step == self._counted:
            return
        self._counted = trainer.global_step
        if self.run.advance():
            trainer.should_stop = True
            self.run = None

    def on_exception(self, trainer: Any, module: Any, error: BaseException) -> None:
        """Lightning: training failed."""
        if self.run is not None:
            self.run.close("failed", error)

    def on_train_end(self, *unused: Any, **found: Any) -> None:
        """Both: training is over."""
        if self.run is not None:
            self.run.close()


#: modules of the trainers -> their base class of callbacks
_BASES = {"transformers": "TrainerCallback", "lightning.pytorch": "Callback", "pytorch_lightning": "Callback"}


def WorkbenchCallback(**options: Any) -> Any:
    """A callback that observes training: ``Trainer(..., callbacks=[WorkbenchCallback()])``, of transformers or
    Lightning. ``options``: those of ``workbench.observe``. Raises ``ConfigError`` where neither is imported."""
    bases = [getattr(sys.modules[name], base) for name, base in _BASES.items() if name in sys.modules]
    if not bases:
        raise ConfigError("WorkbenchCallback: import transformers or lightning first; a loop without them uses observe")
    return type("WorkbenchCallback", (_Observing, *bases), {})(**options)
