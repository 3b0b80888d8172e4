"""Packages that an environment may lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest
from packaging.requirements import Requirement

WAIT_S = 300


def needs(package: str, command: str) -> None:
    """Skip the module that calls this where ``package`` is not installed, which ``command`` installs; with ``CI`` set
    in the environment that is a failure."""
    if importlib.util.find_spec(package) is None:
        _cannot(f"{package} is not installed: {command}")


def beside(extra: str) -> Path:
    """A directory that has the packages of an ``extra`` of this project and what they need more than the environment
    has: for packages that other tests must not see. It is made once for an environment, with uv.

    Skips where it cannot be made; with ``CI`` set in the environment that is a failure.
    """
    wanted = [each for each in map(Requirement, importlib.metadata.requires("dist-workbench") or [])
              if each.marker is not None and each.marker.evaluate({"extra": extra})
              and not each.marker.evaluate({"extra": ""})]  # fmt: skip
    name = "-".join([extra, *(f"{each.name}{each.specifier}" for each in wanted)])
    place = Path(sys.prefix) / "tests-beside" / "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
    if place.is_dir():
        return place
    begun = place.with_name(f"{place.name}.{os.getpid()}")
    missing, before = [f"{each.name}{each.specifier}" for each in wanted], []
    try:
        while missing and missing != before:
            _install(begun, missing)
            missing, before = _missing(begun), missing
        if not place.is_dir():
            begun.rename(place)
    except (OSError, subprocess.SubprocessError) as error:
        _cannot(f"{extra} cannot be installed beside the environment: {getattr(error, 'stderr', '') or error}")
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return place


def _install(place: Path, packages: list[str]) -> None:
    uv = os.environ.get("UV") or shutil.which("uv") or "uv"
    words = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(place)]
    elsewhere = tempfile.gettempdir()  # there uv does not see this project, which leaves out some packages
    subprocess.run([*words, *packages], check=True, capture_output=True, text=True, timeout=WAIT_S, cwd=elsewhere)


def _missing(place: Path) -> list[str]:
    """What the packages in ``place`` need and neither it nor the environment has."""
    there = list(importlib.metadata.distributions(path=[str(place)]))
    known = {_normal(each.name) for each in (*there, *importlib.metadata.distributions())}
    needed = [Requirement(text) for each in there for text in each.requires or []]
    missing = [each for each in needed if _normal(each.name) not in known]
    return sorted({each.name for each in missing if each.marker is None or each.marker.evaluate({"extra": ""})})


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _cannot(message: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message, allow_module_level=True)
