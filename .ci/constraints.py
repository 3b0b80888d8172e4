"""Writes ``[tool.uv] constraint-dependencies``: the versions of this environment, names and versions only.

Run it in an environment whose tests passed: ``python -m uv run python .ci/constraints.py``. ``--check`` changes nothing
and fails when the list differs from the environment.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
KEY = "constraint-dependencies"
COMMENT = "# Versions that passed the tests; written by .ci/constraints.py."
#: not dependencies of the project, or the project itself
LEFT_OUT = {"dist-workbench", "pip", "setuptools", "uv", "wheel"}


def constraints(installed: Iterable[tuple[str, str]]) -> list[str]:
    """``[("Torch", "2.13.0+cpu")]`` -> ``["torch==2.13.0"]``: names normalised, local versions cut off, sorted."""
    versions = {}
    for name, version in installed:
        plain = re.sub(r"[-_.]+", "-", name).lower()
        if plain not in LEFT_OUT:
            versions[plain] = version.partition("+")[0]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def runs_on(distribution: metadata.Distribution, python: str) -> bool:
    """Whether that version can be had on the oldest Python of the project: a pin that cannot would refuse it."""
    return SpecifierSet(distribution.metadata.get("Requires-Python") or "").contains(python)


def rewrite(text: str, pins: list[str]) -> str:
    """The text of a pyproject.toml with that list in ``[tool.uv]``; all else stays as it is.

    ``ValueError`` when there is no ``[tool.uv]`` table, or when anything else would change.
    """
    block = "\n".join([f"{KEY} = [", *(f'    "{pin}",' for pin in pins), "]"])
    old = re.compile(rf"(?:^{re.escape(COMMENT)}\n)?^{KEY} = \[.*?^\]", re.MULTILINE | re.DOTALL)
    block = f"{COMMENT}\n{block}"
    if old.search(text):
        new = old.sub(lambda _: block, text, count=1)
    else:
        table = re.search(r"^\[tool\.uv\]\n.*?(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
        if table is None:
            raise ValueError("pyproject.toml has no table [tool.uv]: add one")
        new = f"{text[: table.start()]}{table[0].rstrip()}\n{block}\n\n{text[table.end() :]}".rstrip() + "\n"
    before, after = tomllib.loads(text), tomllib.loads(new)
    before["tool"]["uv"].pop(KEY, None)
    if after["tool"]["uv"].pop(KEY) != pins or before != after:
        raise ValueError(f"rewriting {KEY} would change something else in pyproject.toml: edit it by hand")
    return new


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the list differs")
    check = parser.parse_args().check
    old = PYPROJECT.read_text(encoding="utf-8")
    oldest = tomllib.loads(old)["project"]["requires-python"].split(",")[0].removeprefix(">=") + ".0"
    found = [each for each in metadata.distributions() if runs_on(each, oldest)]
    pins = constraints((each.metadata["Name"], each.version) for each in found)
    new = rewrite(old, pins)
    if check:
        print("up to date" if new == old else f"{KEY} differs from this environment: run .ci/constraints.py")
        return int(new != old)
    PYPROJECT.write_text(new, encoding="utf-8")
    print(f"{len(pins)} versions written to {PYPROJECT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
