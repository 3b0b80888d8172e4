"""Checks of the value of one option; the error names its flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from workbench.errors import ConfigError, suggest

#: annotation of an option -> the allowed Python types, and their name in messages
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a string"),
    "bool": ((bool,), "true or false"),
    "Every": ((int, str), "a whole number of steps, or epochs such as '1ep'"),
}
#: options whose flag has another name
_FLAGS = {
    "ranks": "--nproc-per-node",
    "level": "--monitor",
    "budget": "--monitor-budget",
    "final_checkpoint": "--no-final-checkpoint",
}
_WITHOUT_FLAG = ("sample_hz",)


def flag_of(option: str) -> str:
    """The flag of an option: ``batch_size`` -> ``--batch-size``. An option without a flag is returned unchanged."""
    return option if option in _WITHOUT_FLAG else _FLAGS.get(option, f"--{option.replace('_', '-')}")


def check_type(item: dataclasses.Field[Any], value: Any) -> None:
    """Raise ``ConfigError`` when ``value`` does not have the type of the option's annotation."""
    kind, _, or_none = str(item.type).partition(" | ")
    if kind not in _TYPES or (or_none and value is None):
        return
    classes, called = _TYPES[kind]
    if not isinstance(value, classes) or (isinstance(value, bool) and kind != "bool"):
        flag = flag_of(item.name)
        raise ConfigError(f"{flag} must be {called}, not {value!r} ({type(value).__name__})", field=flag)


def check_own_types(spec: Any) -> None:
    """Raise ``ConfigError`` when a field of a dataclass of options does not have the type of its annotation."""
    for item in dataclasses.fields(spec):
        check_type(item, getattr(spec, item.name))


def check(condition: bool, flag: str, message: str) -> None:
    """Raise ``ConfigError`` with ``message`` about ``flag`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message, field=flag)


def check_known(value: str, known: Collection[str], flag: str, what: str = "") -> None:
    """Raise ``ConfigError``, which suggests the nearest of ``known``, for a value that is none of them."""
    if value not in known:
        raise ConfigError(f"unknown {what}{value!r}: {suggest(value, known)}", field=flag)


def check_precision(value: str, known: Collection[str]) -> None:
    """Raise ``ConfigError`` for a precision that is none of ``known``, or that no plan has."""
    has_none = "no plan trains in fp8, and CPU ranks have no kernels for it: pass --precision bf16"
    check(value != "fp8", "--precision", f"--precision fp8: {has_none}")
    check_known(value, known, "--precision", "precision ")


def check_least(spec: Any, name: str, least: int) -> None:
    """Raise ``ConfigError`` when the option ``name`` of ``spec`` is below ``least``."""
    value, flag = getattr(spec, name), flag_of(name)
    check(value >= least, flag, f"{flag} must be a whole number of at least {least}, not {value!r}")
