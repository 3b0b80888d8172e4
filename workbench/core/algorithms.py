"""Communication algorithms (gradient compression, local steps), as everything but a rank sees them: facts, found by
entry point.

An algorithm is an entry point of the group ``dist_workbench.algorithms`` whose object is an ``Algorithm``. The module
that defines it imports no tensor library; what runs on ranks is named by its dotted name and loaded there. A person can
define one by the source of a class (``%%dist_algorithm``), which lives as long as the process, and in its runs.

``--algorithm`` takes ``NAME``, ``NAME:NUMBER`` and ``NAME:NUMBER+ef`` (with error feedback); behind the number stand
settings, as in ``diloco:50:lr=0.7``.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from workbench.core import registry
from workbench.errors import ConfigError, suggest

GROUP = "dist_workbench.algorithms"
_FLAG = "--algorithm"
_FEEDBACK = "+ef"
#: the class of which a source that acts on weights makes its own
_LOCAL_CLASS = "LocalSteps"

#: shapes of the parameters whose gradients are sent, and the number of ``NAME:NUMBER`` -> bytes
MessageBytes = Callable[[Sequence[tuple[int, ...]], float], float]


#: the number and the settings -> collectives in a step, on average
Exchanges = Callable[[float, Mapping[str, float]], float]


def _nothing(shapes: Sequence[tuple[int, ...]], number: float) -> float:
    return 0


def _once(number: float, settings: Mapping[str, float]) -> float:
    return 1.0


def _unknown(shapes: Sequence[tuple[int, ...]], number: float) -> float:
    return math.nan


class Feedback(StrEnum):
    """Whether what a rank did not send is added to its next gradient."""

    NEVER = "never"
    CHOSEN = "with +ef"
    ALWAYS = "always"


class ActsOn(StrEnum):
    """What ranks exchange: the gradients of each step, between backward and update, or weights after an update, which
    ranks make by themselves."""

    GRADIENTS = "gradients"
    WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class Number:
    """The number of ``NAME:NUMBER``, or of a setting: what it is, its bounds (both included), and whether it is a whole
    one."""

    title: str
    default: float
    least: float
    most: float = math.inf
    whole: bool = False

    def read(self, text: str, name: str, setting: str = "") -> float:
        """The number that ``text`` is, of algorithm ``name``, or of its ``setting``. ``ConfigError`` for anything else,
        and outside the bounds."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            bounds = f"at least {self.least:g}" if self.most == math.inf else f"from {self.least:g} to {self.most:g}"
            before = f"{name}:{setting}=" if setting else f"{name}:"
            raise ConfigError(
                f"{_FLAG} {before}{text}: {self.title} must be {kind} {bounds}, such as {before}{self.default:g}",
                field=_FLAG,
            )
        return value


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What data-parallel ranks send each other, and when.

    ``paper``: where it was published, with its claim in a line. ``code``: dotted name of the class that does it on
    ranks (``workbench.engine.communication.base.Exchange``; of one that acts on weights,
    ``workbench.engine.communication.local_steps.LocalSteps``). ``number``: None where it takes none. ``settings``:
    those that stand behind the number. ``collective``: the kind of its collectives, of which a bucket of gradients
    takes ``rounds``; one that acts on weights makes so many ``exchanges`` in a step. ``message_bytes``: what each rank
    sends in a step, on average over many, counted as ``CollectiveRecord.bytes`` counts ``all_reduce`` (of
    ``all_gather``: one rank's share of the output), NaN where that is not known. ``kept_bytes``: what it keeps from
    step to step, beside what error feedback does. ``source``: the Python source of one that a person defined, whose
    class is called ``code``.
    """

    name: str
    summary: str
    paper: str
    code: str
    acts_on: ActsOn = ActsOn.GRADIENTS
    number: Number | None = None
    settings: Mapping[str, Number] = field(default_factory=dict)
    feedback: Feedback = Feedback.CHOSEN
    collective: str
    rounds: int = 1
    exchanges: Exchanges = _once
    message_bytes: MessageBytes
    kept_bytes: MessageBytes = _nothing
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class ChosenAlgorithm:
    """An algorithm with its number (0 where it takes none) and all of its settings, with or without error feedback."""

    algorithm: Algorithm
    number: float
    settings: Mapping[str, float] = field(default_factory=dict)
    feedback: bool

    @property
    def is_local(self) -> bool:
        """Whether ranks step by themselves, and exchange weights."""
        return self.algorithm.acts_on is ActsOn.WEIGHTS

    @property
    def text(self) -> str:
        """``"topk:0.01+ef"``, which ``chosen`` reads. Settings are named where they are not the default."""
        number = f":{self.number:g}" if self.algorithm.number is not None else ""
        changed = "".join(
            f":{name}={value:g}"
            for name, value in self.settings.items()
            if value != self.algorithm.settings[name].default
        )
        marked = self.feedback and self.algorithm.feedback is Feedback.CHOSEN
        return f"{self.algorithm.name}{number}{changed}{_FEEDBACK if marked else ''}"

    def calls(self, buckets: int) -> float:
        """Collectives in a step, on average, of gradients in so many buckets."""
        if self.is_local:
            return self.algorithm.exchanges(self.number, self.settings)
        return buckets * self.algorithm.rounds

    def message_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """As ``Algorithm.message_bytes``."""
        return self.algorithm.message_bytes(shapes, self.number)

    def kept_bytes(self, shapes: Sequence[tuple[int, ...]]) -> float:
        """Memory of a rank from step to step: as ``Algorithm.kept_bytes``, and an fp32 copy for error feedback."""
        left_over = 4 * sum(math.prod(shape) for shape in shapes) if self.feedback else 0
        return left_over + self.algorithm.kept_bytes(shapes, self.number)


#: the number of a person's own that acts on weights
_EVERY = Number(title="the number of steps between synchronisations", default=8, least=1, whole=True)
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
        raise ConfigError(f"{where}: define a class of Compressor, Exchange or LocalSteps in the cell", field=_FLAG)
    is_local = any(isinstance(base, ast.Name) and base.id == _LOCAL_CLASS for base in classes[-1].bases)
    said = (ast.get_docstring(classes[-1]) or "defined by its source").partition("\n")[0].rstrip(".")
    _defined[name] = Algorithm(
        name=name,
        summary=said,
        paper="",
        code=classes[-1].name,
        acts_on=ActsOn.WEIGHTS if is_local else ActsOn.GRADIENTS,
        exchanges=lambda number, _: 1 / number,
        number=_EVERY if is_local else None,
        feedback=Feedback.NEVER if is_local else Feedback.CHOSEN,
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
    """What ``--algorithm`` says. ``ConfigError`` for a name, a number, a setting or error feedback that there is
    not."""
    name, number, given, feedback = _parts(text)
    found = algorithm(name)
    if number is not None and found.number is None:
        raise ConfigError(f"{_FLAG} {text}: {name} takes no number: write {name}", field=_FLAG)
    for setting in given:
        if setting not in found.settings:
            known = f"its settings are {', '.join(found.settings)}" if found.settings else "it has none"
            raise ConfigError(f"{_FLAG} {text}: {name} has no setting {setting!r}: {known}", field=_FLAG)
    if feedback and found.feedback is Feedback.NEVER:
        able = [each for each in names() if algorithm(each).feedback is Feedback.CHOSEN]
        raise ConfigError(
            f"{_FLAG} {text}: {name} has no error feedback: leave {_FEEDBACK} out, or use {', '.join(able)}",
            field=_FLAG,
        )
    value = 0.0
    if found.number is not None:
        value = found.number.default if number is None else found.number.read(number, name)
    settings = {
        key: each.read(given[key], name, key) if key in given else each.default for key, each in found.settings.items()
    }
    return ChosenAlgorithm(
        algorithm=found, number=value, settings=settings, feedback=feedback or found.feedback is Feedback.ALWAYS
    )


def is_local(text: str) -> bool:
    """Whether ranks step by themselves under an algorithm ("": none, under which they do not). Of one that this machine
    does not have, False."""
    try:
        return bool(text) and algorithm(name_of(text)).acts_on is ActsOn.WEIGHTS
    except ConfigError:
        return False


def steps_alone_after(text: str) -> float:
    """The last step whose gradients are averaged, after which ranks step by themselves: 0 where they do from the first
    step on, infinite where they never do, or where this machine does not have the algorithm ("": none)."""
    return chosen(text).settings.get("after", 0.0) if is_local(text) else math.inf


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


def _parts(text: str) -> tuple[str, str | None, dict[str, str], bool]:
    """``"topk:0.01+ef"`` -> ``("topk", "0.01", {}, True)``; ``"diloco:50:lr=1"`` -> ``("diloco", "50", {"lr": "1"},
    False)``."""
    rest, plus, mark = text.partition("+")
    if plus and mark != _FEEDBACK[1:]:
        raise ConfigError(
            f"{_FLAG} {text}: behind + stands ef, for error feedback, only: write {rest}{_FEEDBACK}", field=_FLAG
        )
    name, *words = rest.split(":")
    number = words.pop(0) if words and "=" not in words[0] else None
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key in settings:
            raise ConfigError(
                f"{_FLAG} {text}: behind the number stand settings, each once, such as {name}:50:lr=0.7, not {word!r}",
                field=_FLAG,
            )
        settings[key] = value
    return name, number, settings, bool(plus)
