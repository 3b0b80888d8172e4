"""The package that ``workbench new framework`` makes: installed as it is, it passes its own test and the conformance
suite of all frameworks."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.optional import cannot
from workbench.cli.machine import environments, framework_starter
from workbench.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFORMANCE = "tests/engine/test_conformance.py::test_a_strategy_has_what_the_table_of_its_framework_says[mine]"


def install(folder: Path, into: Path) -> None:
    """Install a package without what it needs, which is here."""
    try:
        uv = environments.find_uv()
    except ConfigError as error:
        cannot(f"no package can be installed: {error}")
    command = [*uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(into)]
    subprocess.run([*command, str(folder)], check=True, cwd=tempfile.gettempdir())


def check(command: list[str], folder: Path, place: Path) -> None:
    """Run pytest in ``folder``, where what is installed in ``place`` is found."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not found.returncode, found.stdout + found.stderr
    assert " passed" in found.stdout


def test_it_passes_its_own_test_and_the_conformance_suite(tmp_path: Path) -> None:
    folder, place = tmp_path / "mine", tmp_path / "installed"
    framework_starter.write(folder)
    install(folder, place)
    check(["tests"], folder, place)
    check(["-n", "0", CONFORMANCE], ROOT, place)
