"""Making an environment for the ranks of a framework, with uv: the notebook's own packages, and the framework's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

from workbench.core.environments import RECORD, directory, python_in
from workbench.core.frameworks import Framework, framework, usable
from workbench.errors import ConfigError, WorkbenchError, suggest

_PACKAGE = "dist-workbench"
#: lines of uv's output that an error shows
_LAST_LINES = 12


def names() -> list[str]:
    """Frameworks that have a library of their own, for which an environment can be made."""
    return [each.name for each in usable() if each.library]


def chosen(name: str) -> Framework:
    """The framework of that name. ``ConfigError`` where no environment can be made for it."""
    if name not in names():
        raise ConfigError(f"no environment can be made for {name!r}: {suggest(name, names())}", field="NAME")
    return framework(name)


def create(name: str, tell: Callable[[str], object]) -> Path:
    """Make the environment of framework ``name``, or complete one that was begun; returns its directory.

    ``tell`` is given each line of progress. What this environment has is installed there in the same versions. Raises
    ``ConfigError`` for an unknown name or without uv, and ``WorkbenchError`` when uv fails: nothing is left then.
    """
    found, uv = chosen(name), find_uv()
    path = directory() / name
    if (path / RECORD).is_file():
        tell(f"{path} is complete")
        return path
    shutil.rmtree(path, ignore_errors=True)  # one that was begun
    path.parent.mkdir(parents=True, exist_ok=True)
    tell(f"{found.title} in {path}: {found.size}")
    began, is_done = time.monotonic(), False
    try:
        _run([*uv, "venv", "--python", sys.executable, str(path)], tell)
        constraints = path / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in installed_versions()))
        target = ["--python", str(python_in(path)), "--constraints", str(constraints)]
        _run([*uv, "pip", "install", "--no-compile-bytecode", *target, *requirement(found.name)], tell)
        version = _run([str(python_in(path)), "-c", _VERSION, found.library], tell)
        record = {"framework": name, "version": version, "python": sys.version.split()[0], "made": time.time()}
        (path / RECORD).write_text(json.dumps(record))
        is_done = True
    finally:
        if not is_done:
            shutil.rmtree(path, ignore_errors=True)
    tell(f"{found.title} {version} is ready, {format_size(path)}, after {time.monotonic() - began:.0f} s")
    return path


#: prints the version of a distribution, which is installed where this runs
_VERSION = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


def remove(name: str) -> bool:
    """Remove the environment of a framework; returns whether there was one."""
    path = directory() / chosen(name).name
    if not path.is_dir():
        return False
    shutil.rmtree(path)
    return True


def complete() -> Iterator[tuple[str, str, Path]]:
    """Name, version of the library, and directory of every environment that is complete."""
    for name in names():
        path = directory() / name
        if (path / RECORD).is_file():
            yield name, json.loads((path / RECORD).read_text())["version"], path


def find_uv() -> list[str]:
    """How uv is called. ``ConfigError`` where it is not installed."""
    program = os.environ.get("UV") or shutil.which("uv")
    if program:
        return [program]
    if find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    raise ConfigError(
        f"environments are made with uv, which is not installed: run '{sys.executable} -m pip install uv'"
    )


def installed_versions() -> list[str]:
    """``name==version`` of what is installed here, but for this package."""
    found = {each.metadata["Name"]: each.version for each in metadata.distributions() if each.metadata["Name"]}
    return sorted(f"{name}=={version}" for name, version in found.items() if name != _PACKAGE)


def requirement(extra: str) -> list[str]:
    """Arguments of ``pip install`` for this package as it is installed here, with an extra."""
    text = metadata.distribution(_PACKAGE).read_text("direct_url.json")
    origin = json.loads(text) if text else {}
    if origin.get("dir_info", {}).get("editable"):
        return ["--editable", f"{unquote(urlparse(origin['url']).path)}[{extra}]"]
    if origin:
        return [f"{_PACKAGE}[{extra}] @ {origin['url']}"]
    return [f"{_PACKAGE}[{extra}]=={metadata.version(_PACKAGE)}"]


def format_size(path: Path) -> str:
    """Disk that a directory needs, counting once what is linked several times inside of it."""
    sizes = {}
    for folder, _, files in os.walk(path):
        for name in files:
            status = (Path(folder) / name).lstat()
            sizes[status.st_ino] = 0 if status.st_nlink > 1 else status.st_blocks * 512
    return f"{sum(sizes.values()) / 1e6:.0f} MB of its own (what uv links from its cache is not counted)"


def _run(command: list[str], tell: Callable[[str], object]) -> str:
    """Run a program, telling its output; returns the last line. ``WorkbenchError`` with the last lines if it fails."""
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                tell(lines[-1])
        except BaseException:  # Ctrl-C among them: it is ended, and waited for
            process.terminate()
            raise
    if process.returncode:
        last = "\n".join(lines[-_LAST_LINES:])
        raise WorkbenchError(f"{Path(command[0]).name} failed ({process.returncode}):\n{last}")
    return lines[-1] if lines else ""
