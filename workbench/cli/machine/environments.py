"""Making an environment for the ranks of a framework, with uv.

It sees all packages of the environment that makes it, and has of its own only what the framework needs beside these, or
needs in other versions.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workbench.core.environments import RECORD, place, python_in
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
    """Make the environment of framework ``name``; returns its directory.

    ``tell`` is given each line of progress. Raises ``ConfigError`` for an unknown name or without uv, and
    ``WorkbenchError`` when uv fails: nothing is left then.
    """
    found, uv = chosen(name), find_uv()
    path = place(found)
    if (path / RECORD).is_file():
        tell(f"{path} is complete")
        return path
    shutil.rmtree(path, ignore_errors=True)  # one that was begun
    path.parent.mkdir(parents=True, exist_ok=True)
    tell(f"{found.title} in {path}: {found.size}")
    began, is_done = time.monotonic(), False
    try:
        _run([*uv, "venv", "--quiet", "--python", sys.executable, str(path)], tell)
        _see_this_environment(path)
        wanted = requirements(found.name)
        missing = _missing(uv, wanted, tell)
        target = ["--python", str(python_in(path)), "--no-deps", "--no-compile-bytecode"]
        _run([*uv, "pip", "install", *target, *missing], tell, cwd=tempfile.gettempdir())
        version = _run([str(python_in(path)), "-c", _VERSION, Requirement(wanted[0]).name], tell)
        record = {"framework": name, "version": version, "of": sys.prefix, "packages": missing, "made": time.time()}
        (path / RECORD).write_text(json.dumps(record))
        is_done = True
    finally:
        if not is_done:
            shutil.rmtree(path, ignore_errors=True)
    tell(f"{found.title} {version} is ready after {time.monotonic() - began:.0f} s: ranks of {name} start there")
    return path


#: prints the version of a distribution, which is installed where this runs
_VERSION = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


def remove(name: str) -> bool:
    """Remove the environment of a framework; returns whether there was one."""
    path = place(chosen(name))
    if not path.is_dir():
        return False
    shutil.rmtree(path)
    return True


def complete() -> Iterator[tuple[str, str, Path]]:
    """Name, version of the library, and directory of every environment that is complete."""
    for name in names():
        path = place(framework(name))
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


def requirements(extra: str) -> list[str]:
    """What an extra of this package asks for."""
    found = [Requirement(text) for text in metadata.requires(_PACKAGE) or []]
    return [
        f"{each.name}{each.specifier}"
        for each in found
        if each.marker is not None
        and each.marker.evaluate({"extra": extra})
        and not each.marker.evaluate({"extra": ""})
    ]


def installed() -> dict[str, str]:
    """Name -> version of all that is installed here, but for this package."""
    found = {canonicalize_name(each.name): each.version for each in metadata.distributions() if each.metadata["Name"]}
    return {name: version for name, version in sorted(found.items()) if name != _PACKAGE}


def _see_this_environment(path: Path) -> None:
    """Let the environment in ``path`` import what is installed here, unless it has it itself."""
    of_user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    seen = [*site.getsitepackages(), *of_user]
    own = Path(sysconfig.get_path("purelib", vars={"base": str(path)}))
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in seen]
    own.mkdir(parents=True, exist_ok=True)
    (own / "workbench-env.pth").write_text("".join(lines))


def _missing(uv: list[str], wanted: list[str], tell: Callable[[str], object]) -> list[str]:
    """``name==version`` of what ``wanted`` needs beside what is installed here, or in other versions."""
    with tempfile.TemporaryDirectory() as folder:
        needed, known = Path(folder) / "needed.in", Path(folder) / "known.txt"
        needed.write_text("".join(f"{each}\n" for each in wanted))
        here = installed()
        known.write_text("".join(f"{name}=={version}\n" for name, version in here.items()))
        resolved = Path(folder) / "resolved.txt"
        options = ["--quiet", "--no-header", "--no-annotate", "--python", sys.executable]
        command = [*uv, "pip", "compile", *options, "--constraints", str(known), "--output-file", str(resolved)]
        _run([*command, str(needed)], tell, cwd=folder)
        lines = [line.partition(";")[0].strip() for line in resolved.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line]
    return [f"{name}=={version}" for name, version in pairs if here.get(canonicalize_name(name)) != version]


def _run(command: list[str], tell: Callable[[str], object], *, cwd: str | None = None) -> str:
    """Run a program, telling its output; returns the last line. ``WorkbenchError`` with the last lines if it fails.

    ``cwd``: a directory in which uv sees no project, whose settings leave packages out.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, start_new_session=True
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
