"""``workbench.observe``, which loads torch only when it is called: the notebook's side has the name too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from workbench.core.config import MonitorSpec
    from workbench.engine.observed.run import ObservedRun


def observe(
    model: torch.nn.Module,
    optimizer: Any,
    *,
    name: str = "observed",
    steps: int | None = None,
    on_checkpoint: Callable[[int], Any] | None = None,
    scaler: Any = None,
    monitor: MonitorSpec | None = None,
    timeout_s: float = 30.0,
    patience_s: float | None = None,
) -> ObservedRun:
    """Observe a training loop: ``with workbench.observe(model, optimizer) as run:``, and in it ``run.step(loss)`` once
    after each ``optimizer.step()``. Call it on every rank, after the model was wrapped for data parallelism.

    ``model``: as the loop calls it, or what ``DistributedDataParallel`` wraps. ``optimizer``: a torch optimizer, or
    accelerate's around one. ``name``: of the run. ``steps``: how many are planned, for the progress shown.
    ``on_checkpoint(step)``: writes a checkpoint when one is asked for, on every rank. ``scaler``: the loop's
    ``GradScaler`` (None: the one that this process has). ``monitor``: as for ``train``. ``timeout_s``: how long ranks
    wait for one that does not come to ``run.step`` before they stop agreeing on commands; ``patience_s``: its earlier
    name.

    Raises ``ConfigError`` when the ranks cannot meet, or the optimizer updates nothing of the model.
    """
    from workbench.engine.observed.start import start

    return start(
        model,
        optimizer,
        name=name,
        steps=steps,
        on_checkpoint=on_checkpoint,
        scaler=scaler,
        monitor=monitor,
        timeout_s=timeout_s if patience_s is None else patience_s,
    )
