"""Communication algorithms (gradient compression), as everything but a rank sees them: facts, found by entry point.

An algorithm is an entry point of the group ``dist_workbench.algorithms`` whose object is an ``Algorithm``. The module
that defines it imports no tensor library; what runs on ranks is named by its dotted name and loaded there. A person can
define one by the source of a class (``%%dist_algorithm``), which lives as long as the process, and in its runs.

``--algorithm`` takes ``NAME``, ``NAME:NUMBER`` and ``NAME:NUMBER+ef`` (with error feedback).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from workbench.core import registry
from workbench.errors import ConfigError, suggest

GROUP = "dist_workbench.algorithms"
_FLAG = "--algorithm"
_FEEDBACK = "+ef"

#: shapes of the parameters whose gradients are sent, and the number of ``NAME:NUMBER`` -> bytes
MessageBytes = Callable[[Sequence[tuple[int, ...]], float], float]


def _nothing(shapes: Sequence[tuple[int, ...]], number: float) -> float:
    return 0


def _unknown(shapes: Sequence[tuple[int, ...]], number: float) -> float:
    return math.nan


class Feedback(StrEnum):
    """Whether what a rank did not send is added to its next gradient."""

    NEVER = "never"
    CHOSEN = "with +ef"
    ALWAYS = "always"


@dataclass(frozen=True, kw_only=True)
class Number:
    """The number of ``NAME:NUMBER``: what it is, its bounds (both included), and whether it is a whole one."""

    title: str
    default: float
    least: float
    most: float = math.inf
    whole: bool = False

    def read(self, text: str, name: str) -> float:
        """The number that ``text`` is. ``ConfigError`` for anything else, and outside the bounds."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            bounds = f"at least {self.least:g}" if self.most == math.inf else f"from {self.least:g} to {self.most:g}"
            raise ConfigError(
                f"{_FLAG} {name}:{text}: {self.title} must be {kind} {bounds}, such as {name}:{self.default:g}",
                field=_FLAG,
            )
        return value


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What happens to the gradients of a data-parallel step between backward and update.

    ``paper``: where it was published, with its claim in a line. ``code``: dotted name of the class that does it on
    ranks (``workbench.engine.communication.base.Exchange``). ``number``: None where it takes none. ``collective``: the
    kind of its collectives, of which a bucket of gradients takes ``rounds``. ``message_bytes``: what each rank sends in
    a step, counted as ``CollectiveRecord.bytes`` counts ``all_reduce`` (of ``all_gather``: one rank's share of the
    output), NaN where that is not known. ``kept_bytes``: what it keeps from step to step, beside what error feedback
    does. ``source``: the Python source of one that a person defined, whose class is called ``code``.
    """

    name: str
    summary: str
    paper: str
    code: str
    number: Number | None = None
    feedback: Feedback = Feedback.CHOSEN
    collective: str
    rounds: int = 1
    message_bytes: MessageBytes
    kept_bytes: MessageBytes = _nothing
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class ChosenAlgorithm:
    """An algorithm with its number (0 where it takes none), with or without error feedback."""

    algorithm: Algorithm
    number: float
    feedback: bool

    @property
    def text(self) -> str:
        """``"topk:0.01+ef"``, which ``chosen`` reads."""
        number = f":{self.number:g}" if self.algorithm.number is not None else ""
        marked = self.feedback and self.algorithm.feedback is Feedback.CHOSEN
        return f"{self.algorithm.name}{number}{_FEEDBACK if marked else ''}"

    def message_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """As ``Algorithm.message_bytes``."""
        return self.algorithm.message_bytes(shapes, self.number)

    def kept_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """Memory of a rank from step to step: as ``Algorithm.kept_bytes``, and an fp32 copy for error feedback."""
        left_over = 4 * sum(math.prod(shape) for shape in shapes) if self.feedback else 0
        return left_over + self.algorithm.kept_bytes(shapes, self.number)


#: those that a person has defined in this process
_defined: dict[str, Algorithm] = {}


def define(name: str, source: str) -> Algorithm:
    """Define an algorithm by the source of its class, in place of an earlier one of that name.

    The class is the last one of ``source``. Raises ``ConfigError`` for a name of an installed algorithm, one that is no
    plain word, a source with a syntax error, and one without a class.
    """
    where = f"%%dist_algorithm {name}"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ConfigError(f"{where}: a name has letters, digits, - and _ and begins with a letter", field=_FLAG)
    if name in registry.entries(GROUP):
        raise ConfigError(f"{where}: {name} is an algorithm that is installed: choose another name", field=_FLAG)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ConfigError(f"{where}: line {error.lineno}: {error.msg}", field=_FLAG) from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if not classes:
        raise ConfigError(f"{where}: define a class of Compressor or Exchange in the cell", field=_FLAG)
    said = (ast.get_docstring(classes[-1]) or "defined by its source").partition("\n")[0].rstrip(".")
    _defined[name] = Algorithm(
        name=name,
        summary=said,
        paper="",
        code=classes[-1].name,
        collective="",
        message_bytes=_unknown,
        source=source,
    )
    return _defined[name]


def names() -> list[str]:
    """Names of the algorithms that are installed, and of those that were defined in this process."""
    return [*registry.entries(GROUP), *sorted(_defined)]


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name. ``ConfigError``: there is none (with the nearest name), or it is broken."""
    if name in _defined:
        return _defined[name]
    if name not in registry.entries(GROUP):
        define_it = f"; %%dist_algorithm {name} defines one" if name else ""
        raise ConfigError(f"unknown algorithm {name!r}: {suggest(name, names())}{define_it}", field=_FLAG)
    found: Algorithm = registry.load(GROUP, name, what="algorithm", kind=Algorithm, field=_FLAG)
    return found


def chosen(text: str) -> ChosenAlgorithm:
    """What ``--algorithm`` says. ``ConfigError`` for a name, a number or error feedback that there is not."""
    name, number, feedback = _parts(text)
    found = algorithm(name)
    if number is not None and found.number is None:
        raise ConfigError(f"{_FLAG} {text}: {name} takes no number: write {name}", field=_FLAG)
    if feedback and found.feedback is Feedback.NEVER:
        able = [each for each in names() if algorithm(each).feedback is Feedback.CHOSEN]
        raise ConfigError(
            f"{_FLAG} {text}: {name} has no error feedback: leave {_FEEDBACK} out, or use {', '.join(able)}",
            field=_FLAG,
        )
    value = 0.0
    if found.number is not None:
        value = found.number.default if number is None else found.number.read(number, name)
    return ChosenAlgorithm(algorithm=found, number=value, feedback=feedback or found.feedback is Feedback.ALWAYS)


def name_of(text: str) -> str:
    """``"topk:0.01+ef"`` -> ``"topk"``."""
    return _parts(text)[0]


def normal(text: str) -> str:
    """``text`` as ``ChosenAlgorithm.text``; as it is where its algorithm is not installed, or broken: runs of it can be
    shown on any machine."""
    try:
        algorithm(name_of(text))
    except ConfigError:
        return text
    return chosen(text).text


def _parts(text: str) -> tuple[str, str | None, bool]:
    """``"topk:0.01+ef"`` -> ``("topk", "0.01", True)``."""
    rest, plus, mark = text.partition("+")
    if plus and mark != _FEEDBACK[1:]:
        raise ConfigError(
            f"{_FLAG} {text}: behind + stands ef, for error feedback, only: write {rest}{_FEEDBACK}", field=_FLAG
        )
    name, colon, number = rest.partition(":")
    return name, number if colon else None, bool(plus)
