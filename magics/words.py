"""Parses the arguments of a magic like a shell. The error for an unknown argument suggests a known one."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from IPython.core.error import UsageError

from workbench.core import flags
from workbench.errors import ConfigError

_LONGEST_USAGE = 100


def parse(magic: Any, line: str) -> argparse.Namespace:
    """Parse ``line`` with the arguments of ``magic``, a method with ``magic_arguments``.

    Quotes are removed as in a shell, and a ``#`` that stands alone starts a comment. Backslashes are kept, as regular
    expressions need them. The name of a recipe may stand for ``--recipe NAME``. Raises ``ConfigError``, with a
    suggestion, for an argument or a value that the magic does not take.
    """
    parser: argparse.ArgumentParser = magic.parser
    flags.name_numbers(parser)
    try:
        given, unknown = parser.parse_known_args(_split(flags.normalised(line)))
    except UsageError as error:
        raise ConfigError(f"%{parser.prog}: {error}; {_usage(parser)}") from error
    unknown = flags.take_recipe(given, unknown)
    if unknown:
        raise ConfigError(f"%{parser.prog}: {flags.not_understood(unknown, parser)}; {_usage(parser)}")
    return given


def _usage(parser: argparse.ArgumentParser) -> str:
    """Return the arguments of a magic where they fit in a line, or else how to list them."""
    usage = " ".join(parser.format_usage().replace("::", "").split())
    return f"usage: {usage}" if len(usage) <= _LONGEST_USAGE else f"{usage.split()[0]}? lists all arguments"


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ConfigError(f"a quote is not closed in {line.strip()!r}: add the closing quote") from error
    return words[: words.index("#")] if "#" in words else words
