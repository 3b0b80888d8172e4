"""Environments of frameworks: where ranks find a library that the notebook's own environment does not have.

``workbench env create NAME`` makes one (``workbench.cli.machine.environments``) for the environment that it runs in,
whose packages it sees; ranks of that framework start there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import platformdirs

from workbench.core.frameworks import Framework
from workbench.errors import ConfigError

#: names another directory of environments
VARIABLE = "WORKBENCH_ENVS"
#: written when an environment is complete: what it was made of
RECORD = "workbench-env.json"


def directory() -> Path:
    """Where environments are: ``$WORKBENCH_ENVS``, or a directory of the user's own data."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_data_path("dist-workbench") / "envs"


def place(framework: Framework) -> Path:
    """The directory of a framework's environment for the environment of this interpreter."""
    return directory() / f"{framework.name}-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]}"


def python_in(environment: Path) -> Path:
    """The interpreter of an environment."""
    return environment / "bin" / "python"


def python_for(framework: Framework) -> str:
    """The interpreter that ranks of a framework start with: "" for this one, where its library is installed.

    Raises ``ConfigError`` when it is neither here nor in an environment of its own.
    """
    if is_here(framework):
        return ""
    if (place(framework) / RECORD).is_file():
        return str(python_in(place(framework)))
    raise ConfigError(
        f"{framework.title} is not installed: run '{sys.executable} -m workbench env create {framework.name}' (with ! "
        "before it in a notebook), which makes an environment for its ranks beside this one, or "
        f"'{install_command(framework.name)}'",
        field="--framework",
    )


def is_here(framework: Framework) -> bool:
    """Whether this environment has what the framework's ranks import."""
    return not framework.library or framework.library in sys.modules or _is_found(framework.library)


def can_start(framework: Framework) -> bool:
    """Whether ranks of the framework can start, here or in an environment of its own."""
    return is_here(framework) or (place(framework) / RECORD).is_file()


def versions_in(framework: Framework) -> dict[str, str]:
    """Name -> version of what the framework's own environment has beside the packages of this one; nothing where its
    ranks start here, or there is none."""
    record = place(framework) / RECORD
    if is_here(framework) or not record.is_file():
        return {}
    pairs = [package.split("==") for package in json.loads(record.read_text())["packages"]]
    return {name: version for name, version in pairs}


def install_command(extra: str) -> str:
    """What brings an extra of this package into the environment of this interpreter."""
    return f'{sys.executable} -m pip install "dist-workbench[{extra}]"'


def _is_found(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):
        return False
