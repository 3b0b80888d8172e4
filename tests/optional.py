"""Packages that an environment may lack."""

from __future__ import annotations

import importlib.util
import os
from typing import NoReturn

import pytest


def needs(package: str, command: str) -> None:
    """Skip the module that calls this where ``package`` is not installed, which ``command`` installs; with ``CI`` set
    in the environment that is a failure."""
    if importlib.util.find_spec(package) is None:
        cannot(f"{package} is not installed: {command}")


def cannot(message: str) -> NoReturn:
    """Skip for a reason; with ``CI`` set in the environment that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)
