"""Options of the test run."""

from __future__ import annotations

import signal

import pytest


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored; Ctrl-C is what some tests are about.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", default=None, metavar="DIR", help="keep the browser tests' screenshots here")
