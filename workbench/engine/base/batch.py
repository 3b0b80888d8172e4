"""What a step is given."""

from __future__ import annotations

from typing import Any

#: a tensor, or a dict, list or tuple of tensors whose dim 0 are the samples
Batch = Any
