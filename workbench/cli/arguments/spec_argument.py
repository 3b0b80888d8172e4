"""What the commands that train share: a spec file or a recipe's name as argument, and ranks that end with them."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.core import flags


def add_to(parser: argparse.ArgumentParser, what: str) -> None:
    """The argument ``spec``, with the help text ``what``."""
    parser.add_argument("spec", type=Path, metavar="SPEC.toml|RECIPE", nargs="?", help=what)


def chosen(arguments: argparse.Namespace, needed: Collection[str], missing: str) -> tuple[Path | None, dict[str, Any]]:
    """The spec file (None: a recipe's name was given, or nothing), and the options of the flags.

    Without a spec file one of the options ``needed`` has to be there; else the command ends with the message
    ``missing``.
    """
    spec = arguments.spec
    if spec is not None and not spec.exists() and not flags.take_recipe(arguments, [str(spec)]):
        spec = None  # the word was a recipe's name
    options = flags.options_of(arguments)
    if spec is not None and "data" in options and spec.suffix != ".toml":  # the shell made files of a pattern
        arguments.parser.error(flags.not_understood([str(spec)], arguments.parser))
    if spec is None and not options.keys() & set(needed):
        arguments.parser.error(missing)
    return spec, options


@contextmanager
def ranks_ended() -> Iterator[None]:
    """While entered, ranks may be started; they are ended with it."""
    from workbench.cluster.session import Session

    try:
        yield
    finally:
        session = Session.current()
        if session is not None:
            session.down()
