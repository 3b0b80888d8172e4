"""Where a run was started: packages, code (git commit and what was not committed), command line, processor.

``record(path)`` writes ``environment.json`` into a run directory when it is made; ``add(path)`` adds what its ranks
find, such as settings of torch that the cell changes (``torch_settings``); ``read(path)`` gives it back.
Nothing is imported for it and nothing is asked of the network.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ENVIRONMENT_FILE = "environment.json"
#: a diff longer than this is cut, and says so
LONGEST_DIFF = 200_000
MOST_UNTRACKED = 200
_GIT_S = 3.0


def record(run: Path) -> None:
    """Write ``environment.json``; ``OSError`` when the directory cannot be written."""
    (run / ENVIRONMENT_FILE).write_text(json.dumps(describe(), indent=1) + "\n", encoding="utf-8")


def add(run: Path, **found: Any) -> None:
    """Add to what ``record`` wrote what was found out later. ``OSError`` when it cannot be written, ``ValueError`` when
    the file cannot be understood."""
    (run / ENVIRONMENT_FILE).write_text(json.dumps(read(run) | found, indent=1) + "\n", encoding="utf-8")


def read(run: Path) -> dict[str, Any]:
    """What ``record`` wrote; empty when there is none. ``ValueError`` when it cannot be understood."""
    try:
        found = json.loads((run / ENVIRONMENT_FILE).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"{ENVIRONMENT_FILE} contains no table")
    return found


def describe(folder: Path | None = None) -> dict[str, Any]:
    """command, directory, notebook ("" outside one), executable, processor, packages, git: of this process, now."""
    folder = folder or Path.cwd()
    return {
        "command": sys.argv,
        "directory": str(folder),
        "notebook": os.environ.get("JPY_SESSION_NAME", ""),
        "executable": sys.executable,
        "processor": _processor(),
        "packages": packages(),
        "git": git(folder),
    }


def packages() -> dict[str, str]:
    """Name -> version of every installed package, from the names of their directories alone (milliseconds)."""
    found: dict[str, str] = {}
    for place in map(Path, sys.path):
        try:
            entries = [entry.name for entry in os.scandir(place) if entry.name.endswith(".dist-info")]
        except OSError:
            continue
        for entry in entries:
            name, _, version = entry.removesuffix(".dist-info").partition("-")
            found.setdefault(name.replace("_", "-").lower(), version)
    return dict(sorted(found.items()))


def git(folder: Path) -> dict[str, Any]:
    """``root``, ``commit``, ``branch``, ``remote``, ``diff`` (against the commit, "" when clean) and ``untracked``
    (names of files that git does not know) of the repository of ``folder``; empty where there is none, or no git."""
    lines = _git(folder, "rev-parse", "--show-toplevel", "HEAD", "--abbrev-ref", "HEAD").splitlines()
    if len(lines) < 3:
        return {}
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff")
    if len(diff) > LONGEST_DIFF:
        diff = f"{diff[:LONGEST_DIFF]}\n... cut after {LONGEST_DIFF:,} of {len(diff):,} characters\n"
    remote = _without_password(_git(folder, "config", "--get", "remote.origin.url").strip())
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard").splitlines()[:MOST_UNTRACKED]
    about = {"root": lines[0], "commit": lines[1], "branch": lines[2], "remote": remote}
    return {**about, "diff": diff, "untracked": untracked}


def _git(folder: Path, *words: str) -> str:
    """What git prints; "" when it fails, is not there or takes too long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            timeout=_GIT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else ""


def _without_password(url: str) -> str:
    """An address without the name and password that may stand in it."""
    parts = urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
