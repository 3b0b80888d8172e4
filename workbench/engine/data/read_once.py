"""Data that can be read once, such as a generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.errors import ConfigError


def remark_on_iterator(name: str, data: Any) -> str:
    """What to tell of data that can be read once; "" if nothing."""
    if not isinstance(data, Iterator):
        return ""
    return (
        f"the {name} is a {type(data).__name__}, which can be read once: it has to last for all steps, and the run "
        "cannot be rolled back. Data of several epochs are an object whose __iter__ starts from the beginning"
    )


def check_repeatable(name: str, data: Any) -> None:
    """Raise ``ConfigError`` for data that can be read once."""
    if isinstance(data, Iterator):
        raise ConfigError(
            f"the {name} is a {type(data).__name__}, which can be read once, so training cannot go back to an earlier "
            "sample: resume from the checkpoint in a new run (--resume), which makes it anew",
            field=name,
        )
