"""The words after a magic: split and parsed as a shell would, and answered when they are not understood."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from IPython.core.error import UsageError

from workbench.core import flags
from workbench.errors import ConfigError


def parse(magic: Any, line: str) -> argparse.Namespace:
    """The arguments of ``magic`` (a method with ``magic_arguments``) on ``line``.

    Quotes are taken off as in a shell, and what follows a lone ``#`` is a comment; a backslash stays, as it belongs to
    a regular expression. ``ConfigError`` for a word or a value that the magic does not take, with the nearest one that
    it does.
    """
    parser: argparse.ArgumentParser = magic.parser
    try:
        given, unknown = parser.parse_known_args(_split(flags.normalised(line)))
    except UsageError as error:
        raise ConfigError(f"%{parser.prog}: {error}; %{parser.prog}? explains them all") from error
    if unknown:
        raise ConfigError(f"%{parser.prog}: {flags.not_understood(unknown, parser)}; %{parser.prog}? explains them all")
    return given


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters, lexer.escape = True, "", ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ConfigError(f"a quote is opened and not closed in: {line.strip()}") from error
    return words[: words.index("#")] if "#" in words else words
