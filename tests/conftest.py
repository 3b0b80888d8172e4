"""Options of the test run."""

from __future__ import annotations

import os
import signal

import pytest

_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored; Ctrl-C is what some tests are about.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Two ranks cannot share the one GPU that a machine may have: only what is about GPUs sees any.
    if item.get_closest_marker("gpu") is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif _VISIBLE is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = _VISIBLE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", default=None, metavar="DIR", help="keep the browser tests' screenshots here")
