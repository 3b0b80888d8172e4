"""Packages that an environment may lack."""

from __future__ import annotations

import importlib.util
import os

import pytest


def needs(package: str, command: str, *, in_ci: bool) -> None:
    """Skip the module that calls this where ``package`` is not installed, which ``command`` installs.

    ``in_ci``: with ``CI`` set in the environment that is a failure.
    """
    if importlib.util.find_spec(package) is not None:
        return
    message = f"{package} is not installed: {command}"
    if in_ci and os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)
