"""Parse the arguments of a magic as a shell would; an argument that is not understood is an error that helps."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from IPython.core.error import UsageError

from workbench.core import flags
from workbench.errors import ConfigError


def parse(magic: Any, line: str) -> argparse.Namespace:
    """The arguments of ``magic`` (a method with ``magic_arguments``) on ``line``.

    Quotes are removed as in a shell, and a lone ``#`` starts a comment. A backslash is kept: regular expressions need
    it. Raises ``ConfigError`` for an argument or a value that the magic does not take, with a suggestion.
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
        raise ConfigError(f"a quote is not closed in: {line.strip()}") from error
    return words[: words.index("#")] if "#" in words else words
