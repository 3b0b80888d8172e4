"""Tab completes the arguments of our magics, and in a ``%%dist`` cell the names that live on the ranks."""

from __future__ import annotations

import re
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from workbench.core.flags import normalised
from workbench.errors import WorkbenchError

_MAGIC = re.compile(r"%{1,2}(dist\w*)\s+(.*)$")
_CELL_ON_RANKS = re.compile(r"\s*%%dist(\s|$)")
#: a name, or a dotted one, that the cursor stands behind
_WORD = re.compile(r"[^\W\d]\w*(\.\w*)*$")
_NAME = re.compile(r"[^\W\d]\w*")


def register(shell: InteractiveShell) -> None:
    """Let ``shell`` complete them, also behind ``name = %dist_...``."""
    shell.set_hook("complete_command", _complete, re_key=r".*%{1,2}dist\w*\s")
    shell.Completer.custom_matchers.append(names_of_ranks)


@context_matcher(identifier="workbench.names_of_ranks")
def names_of_ranks(context: CompletionContext) -> SimpleMatcherResult:
    """What completes the word of a ``%%dist`` cell on any rank, and other words of the cell. Where ranks know nothing
    of it, or are busy, it is left to IPython, which knows the notebook."""
    token = _WORD.search(context.token)
    if token is None or context.cursor_line == 0 or not _CELL_ON_RANKS.match(context.full_text):
        return SimpleMatcherResult(completions=[])
    word, found = token.group(), set(_on_ranks(token.group()))
    if found and "." not in word:
        found |= {name for name in _NAME.findall(context.full_text) if name.startswith(word) and name != word}
    before = context.token[: token.start()]
    completions = [SimpleCompletion(text=before + name) for name in sorted(found)]
    return SimpleMatcherResult(completions=completions, suppress=bool(completions))


def _on_ranks(word: str) -> list[str]:
    from workbench.cluster.names.ask import completions
    from workbench.cluster.session import Session

    session = Session.current()
    try:
        return [] if session is None else completions(session, word)
    except WorkbenchError:  # ranks that cannot answer now have nothing to offer
        return []


def _complete(shell: InteractiveShell, event: Any) -> list[str]:
    from workbench.run.completion import candidates

    found = _MAGIC.search(event.text_until_cursor)
    if found is None:
        return []
    name, line = found.groups()
    kind = "cell" if f"%%{name}" in event.text_until_cursor else "line"
    magic = shell.magics_manager.magics[kind].get(name) or shell.magics_manager.magics["line"].get(name)
    parser = getattr(magic, "parser", None)
    if parser is None:
        return []
    before, _, current = line.rpartition(" ")
    return candidates(parser, normalised(before).split(), current)
