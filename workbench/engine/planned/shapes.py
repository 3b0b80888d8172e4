"""Whether models are made without weights: to be described, not to be trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHAPES_ONLY: ContextVar[bool] = ContextVar("shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """While entered, recipes make their models on the meta device."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


def makes_shapes_only() -> bool:
    """Whether a model that is made now needs no weights."""
    return _SHAPES_ONLY.get()
