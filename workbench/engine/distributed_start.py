"""A training that begins with the weights of a directory of ``torch.distributed.checkpoint``, under any plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.core.frameworks import Capability
from workbench.engine.agree.control import AgreedControl
from workbench.engine.base.capabilities import Checkpointable, needed
from workbench.engine.frameworks.torch_common.optimizer_state import state_names
from workbench.engine.state.checkpoint import load_tensors
from workbench.engine.state.layout import RankState
from workbench.errors import RunError, WorkbenchError


def begin_from(path: Path | None, strategy: Any, control: AgreedControl) -> None:
    """Load weights and buffers of ``path``, and the optimizer's state where ``path`` has all that the optimizer keeps;
    an event tells where it has not. Collective, before the first step. None: nothing is loaded.

    Options of the optimizer, such as the learning rate, stay as they are. Raises ``RunError`` on every rank, before
    anything is changed, when any rank misses a weight or finds it of another shape.
    """
    if path is None:
        return
    from workbench.engine.state.distributed import DistributedReader  # 3 s, which other trainings do not need

    tell = strategy.tell
    held: RankState = needed(strategy, Checkpointable, Capability.CHECKPOINTABLE).rank_state()
    reason, reader = "", None
    try:
        keys = _kept(held, tell)
        reader = DistributedReader(path, [*(slot.name for slot in held.slots), *held.buffers], keys)
        for slot in held.slots:
            reader.expect(f"weights/{slot.name}", slot.saved.place.shape)
    except WorkbenchError as error:
        reason = str(error)
    if not control.all_can(not reason) or reader is None:
        raise RunError(f"cannot begin from {path}: {reason or 'another rank misses a weight'}")
    load_tensors(reader, held)
    missing = [slot.name for slot in held.slots if not reader.optimizer_states(slot.name)]
    if missing and keys:
        text = f"{path} has no {', '.join(sorted(keys))} of {missing[0]}" + (
            f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        )
        tell("optimizer_state", f"{text}: their optimizer state starts anew")


def _kept(held: RankState, tell: Callable[[str, str], object]) -> set[str]:
    """Names of what the optimizer keeps for a weight."""
    try:
        return state_names(held.optimizer)
    except Exception as error:  # whatever a foreign optimizer raises
        text = f"{type(held.optimizer).__name__} could not be tried: {type(error).__name__}: {error}"
        tell("optimizer_state", f"its state begins anew, as {text}")
        return set()
