"""Asks ranks about their variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.cluster.names.description import ANSWER, Description
from workbench.cluster.names.table import NamesTable
from workbench.errors import ConfigError, suggest

if TYPE_CHECKING:
    from workbench.cluster.session import Session

_DESCRIBE = "from workbench.cluster.names.on_rank import publish_descriptions as _ask; _ask({names!r}); del _ask"
_COMPLETE = "from workbench.cluster.names.on_rank import publish_completions as _ask; _ask({word!r}); del _ask"
#: seconds that Tab waits for ranks
_TAB_S = 2.0


def names_on(session: Session, names: Sequence[str] = (), ranks: Sequence[int] | None = None) -> NamesTable:
    """The variables of ranks (default: all ranks, and all variables that cells made, without modules).

    Values are compared by fingerprints, of large tensors by a million elements at equal distances. Raises
    ``ConfigError`` for a name that no rank has; other errors as ``Session.ask``.
    """
    found = _ask_ranks(session, _DESCRIBE.format(names=list(names)), ranks)
    described: dict[str, dict[int, Description]] = {}
    for rank, answer in sorted(found.items()):
        for name, fields in answer.items():
            described.setdefault(name, {})[rank] = Description(**fields)
    for name in names:
        if name not in described:
            known = names_on(session, (), ranks).described
            raise ConfigError(f"no rank has a name {name!r}: {suggest(name, known or ['none'])}")
    return NamesTable(dict(sorted(described.items())), tuple(sorted(found)))


def completions(session: Session, word: str) -> list[str]:
    """What completes ``word`` on any rank; nothing while ranks are busy, or where some have died."""
    if session.dead or session.is_busy():
        return []
    found = _ask_ranks(session, _COMPLETE.format(word=word), None, _TAB_S)
    return sorted({name for answer in found.values() for name in answer})


def _ask_ranks(
    session: Session, code: str, ranks: Sequence[int] | None, timeout: float | None = None
) -> dict[int, Any]:
    outputs = session.ask(code, ranks, timeout).raise_on_error().outputs
    return {rank: output.displays[0][ANSWER] for rank, output in outputs.items()}
