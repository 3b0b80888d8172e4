"""Tells a forward pass that activation checkpointing repeats during backward from everything else in backward."""

from __future__ import annotations

import sys
from types import FrameType

import torch
import torch.autograd
import torch.utils.checkpoint

_CHECKPOINT = torch.utils.checkpoint.__file__
_AUTOGRAD = (torch.autograd.__file__, torch.autograd.graph.__file__)


def is_recomputing() -> bool:
    """Whether the caller runs in such a repeated forward pass. A hook of a gradient does not, even when the backward
    pass that calls it belongs to a checkpoint: of frames, the innermost of either kind decides."""
    if torch._C._current_graph_task_id() == -1:  # not in a backward pass: the usual case, which costs nothing
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _CHECKPOINT:
            return True
        if file in _AUTOGRAD and frame.f_code.co_name != "apply":  # ``apply`` calls the checkpoint's own backward
            return False
        frame = frame.f_back
    return False
