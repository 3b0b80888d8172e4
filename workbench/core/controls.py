"""What can be changed while a run trains, declared once: buttons, magics, ``Run`` and the command line follow.

A ``Control`` says its name, type, bounds, unit and who applies it; ``parse`` turns what a person typed into a value or
a ``ConfigError`` that says what is allowed. A training script adds one of its own in a line::

    temperature = knob("temperature", 1.0, low=0, high=10)    # then: logits / temperature

No torch here: the kernel and the command line read this as well as the ranks.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import ConfigError, nearest

#: who carries a command out: the training loop, the parallel plan, what watches the steps, the cell, or the session
APPLIERS = ("trainer", "strategy", "observer", "cell", "session")
KINDS = ("none", "float", "int", "choice", "regex", "lr", "interval", "checkpoint", "changes")
WIDGETS = ("button", "number", "log_number", "choice", "text")
#: ``set lr=schedule``: back to what the schedule says
SCHEDULE = "schedule"
AUTOMATIC = "auto"
NEWEST = "newest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One thing that can be changed. ``setting``: it has a value that stays (``set name=value``); otherwise an act.

    ``kind``: none (no value), float, int, choice, regex, lr (number, ``x0.5`` or ``schedule``), interval (steps, or
    ``auto``), checkpoint (a step, or ``newest``), changes (options of a run). ``low`` and ``high`` are inclusive.
    ``default``: the value where none is given; None: one has to be given, unless ``kind`` is none.
    """

    name: str
    kind: str
    help: str
    applies: str = "trainer"
    setting: bool = False
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    default: Any = None
    widget: str = "button"

    def parse(self, value: Any = None) -> Any:
        """The value to apply. ``ConfigError`` says what is allowed."""
        if value is None or value == "":
            if self.kind == "none":
                return None
            if self.default is not None:
                value = self.default
            elif value is None or not (self.kind == "regex" and self.setting):
                raise self._refusal(value)
        return _PARSERS[self.kind](self, value)

    def allowed(self) -> str:
        """What may be given, for people: "a number of at least 0"."""
        if self.kind in ("float", "int"):
            what = "a number" if self.kind == "float" else "a whole number"
            low, high = _number(self.low), _number(self.high)
            if self.low is not None and self.high is not None:
                return f"{what} from {low} to {high}"
            return what + (f" of at least {low}" if low else f" of at most {high}" if high else "")
        return {
            "none": "no value",
            "choice": " or ".join(self.choices),
            "regex": "a regular expression that layer names are searched for",
            "lr": "a number above 0, a factor such as x0.5, or schedule",
            "interval": "a whole number of steps (0: never), or auto",
            "checkpoint": "the step of a checkpoint, or newest",
            "changes": "options of a run, such as lr=1e-4",
        }[self.kind]

    def describe(self) -> dict[str, Any]:
        """The declaration as plain values, for an event; ``from_description`` reads it."""
        return asdict(self)

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Control:
        """Undo ``describe``; fields of a newer version are left out."""
        known = {name: described[name] for name in cls.__dataclass_fields__ if name in described}
        return cls(**{**known, "choices": tuple(known.get("choices", ()))})

    def _refusal(self, value: Any) -> ConfigError:
        given = "nothing was given" if value is None or value == "" else f"not {value!r}"
        unit = f" ({self.unit})" if self.unit else ""
        return ConfigError(f"{self.name}{unit} takes {self.allowed()}: {given}", field=self.name)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _none(control: Control, value: Any) -> None:
    raise control._refusal(value)


def _float(control: Control, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise control._refusal(value) from None
    if isinstance(value, bool) or not math.isfinite(number) or not _within(control, number):
        raise control._refusal(value)
    return number


def _int(control: Control, value: Any) -> int:
    number = _float(control, value)
    if number != int(number):
        raise control._refusal(value)
    return int(number)


def _within(control: Control, number: float) -> bool:
    return (control.low is None or number >= control.low) and (control.high is None or number <= control.high)


def _choice(control: Control, value: Any) -> str:
    if value not in control.choices:
        raise control._refusal(value)
    return str(value)


def _regex(control: Control, value: Any) -> str:
    if not isinstance(value, str):
        raise control._refusal(value)
    try:
        re.compile(value)
    except re.error as error:
        raise ConfigError(f"{control.name}: {value!r} is no regular expression: {error}", field=control.name) from None
    return value


def _lr(control: Control, value: Any) -> float | str:
    if value == SCHEDULE:
        return SCHEDULE
    is_factor = isinstance(value, str) and value[:1] in "x*"
    number = _float(control, value[1:] if is_factor else value)
    if number <= 0:
        raise control._refusal(value)
    return f"x{number!r}" if is_factor else number


def _interval(control: Control, value: Any) -> int | str:
    return AUTOMATIC if value == AUTOMATIC else _int(control, value)


def _checkpoint(control: Control, value: Any) -> int | str:
    return NEWEST if value == NEWEST else _int(control, value)


def _changes(control: Control, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise control._refusal(value)
    return dict(value)


_PARSERS: dict[str, Callable[[Control, Any], Any]] = {
    "none": _none,
    "float": _float,
    "int": _int,
    "choice": _choice,
    "regex": _regex,
    "lr": _lr,
    "interval": _interval,
    "checkpoint": _checkpoint,
    "changes": _changes,
}

CONTROLS: tuple[Control, ...] = (
    Control(name="pause", kind="none", help="hold all ranks after this step"),
    Control(name="resume", kind="none", help="go on after a pause"),
    Control(name="step", kind="int", low=1, default=1, unit="steps", help="train some steps, then pause",
            widget="number"),
    Control(name="stop", kind="choice", choices=("step", "checkpoint"), default="step",
            help="end the run after this step, or after writing a checkpoint", widget="choice"),
    Control(name="lr", kind="lr", setting=True, applies="strategy", low=0, widget="log_number",
            help="learning rate: a number, a factor (x0.5), or schedule"),
    Control(name="clip", kind="float", setting=True, applies="strategy", low=0, widget="number",
            help="largest global norm of the gradient (0: any)"),
    Control(name="weight_decay", kind="float", setting=True, applies="strategy", low=0, widget="log_number",
            help="weight decay of the parameter groups that have one"),
    Control(name="accumulate", kind="int", setting=True, low=1, unit="pieces", widget="number",
            help="pieces that a rank cuts its share of the batch into"),
    Control(name="log_every", kind="int", setting=True, low=1, unit="steps", widget="number",
            help="steps between step records"),
    Control(name="grad_every", kind="interval", setting=True, applies="observer", low=0, unit="steps",
            widget="number", help="steps between gradient statistics (0: never)"),
    Control(name="grad_layers", kind="regex", setting=True, applies="observer", widget="text",
            help="watch only layers with such names (empty: all)"),
    Control(name="evaluate", kind="none", help="evaluate now"),
    Control(name="sample", kind="none", help="let the model write a sample now"),
    Control(name="checkpoint", kind="none", help="write a checkpoint now"),
    Control(name="rollback", kind="checkpoint", low=0, default=NEWEST, unit="step", widget="number",
            help="go back to a checkpoint: weights, optimizer, schedule, random numbers, data, settings"),
    Control(name="branch", kind="changes", applies="session", widget="text",
            help="stop here with a checkpoint and go on as a new run with changed options"),
    Control(name="freeze", kind="regex", applies="strategy", widget="text",
            help="no longer update layers with such names"),
    Control(name="unfreeze", kind="regex", applies="strategy", default=".", widget="text",
            help="update frozen layers with such names again"),
)  # fmt: skip

#: acts have a verb of their own; settings are set
ACTS = tuple(control for control in CONTROLS if not control.setting)
SETTINGS = tuple(control for control in CONTROLS if control.setting)


def find(name: str, declared: Iterable[Control] = ()) -> Control:
    """The control of that name, of ours or among those that a run declared. ``ConfigError`` with the nearest name."""
    known = {control.name: control for control in (*CONTROLS, *declared)}
    if name not in known:
        raise ConfigError(f"unknown control {name!r}: {nearest(name, known)}", field=name)
    return known[name]


def settings(changes: Mapping[str, Any], declared: Iterable[Control] = ()) -> dict[str, Any]:
    """Checked values of ``set lr=1e-4 clip=1``; ``ConfigError`` for an act, an unknown name or a wrong value."""
    if not changes:
        names = ", ".join(control.name for control in (*SETTINGS, *declared))
        raise ConfigError(f"set what? name=value, where name is one of {names}")
    found = {}
    for name, value in changes.items():
        control = find(name, declared)
        if not control.setting:
            raise ConfigError(f"{name} is no setting: it is called as {name}, not as set {name}=...", field=name)
        found[name] = control.parse(value)
    return found


def assignments(words: Iterable[str]) -> dict[str, str]:
    """``["lr=1e-4", "clip=1"]`` -> names and texts. ``ConfigError`` for a word without ``=`` or a name twice."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"{word!r} is no name=value, such as lr=1e-4")
        if name in found:
            raise ConfigError(f"{name} is given twice: {found[name]} and {value}", field=name)
        found[name] = value
    return found


class Knob:
    """A number of a training script that can be turned while it trains; behaves as its present value does.

    ``value`` is that value, the same on every rank in every step. Arithmetic and comparisons take the value.
    """

    def __init__(self, control: Control, value: float) -> None:
        self.control = control
        self.value = value

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        return f"<knob {self.control.name} = {self.value:g}>"


def _reading(operation: Callable[[Any, Any], Any], *, swapped: bool) -> Callable[[Knob, Any], Any]:
    def method(self: Knob, other: Any) -> Any:
        other = other.value if isinstance(other, Knob) else other
        return operation(other, self.value) if swapped else operation(self.value, other)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Knob, f"__{_name}__", _reading(getattr(operator, _name), swapped=False))
    setattr(Knob, f"__r{_name}__", _reading(getattr(operator, _name), swapped=True))
for _name in ("lt", "le", "gt", "ge"):
    setattr(Knob, f"__{_name}__", _reading(getattr(operator, _name), swapped=False))


#: the knobs of the run that this process trains, by name
knobs: dict[str, Knob] = {}


def knob(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    help: str = "",
) -> Knob:
    """Declare a knob of a training script and return it. Called again with the same name, it is the same knob.

    ``low`` and ``high`` bound what ``set name=value`` accepts. ``ConfigError`` for a name that is taken or no
    identifier, and for a first value out of bounds.
    """
    if not name.isidentifier() or name in {control.name for control in CONTROLS}:
        raise ConfigError(f"knob {name!r}: use a Python identifier that is no control of its own", field=name)
    control = Control(
        name=name,
        kind="float",
        setting=True,
        applies="cell",
        low=low,
        high=high,
        unit=unit,
        help=help or f"{name}, declared by the training script",
        widget="number",
    )
    found = knobs.get(name)
    if found is None or found.control != control:
        found = knobs[name] = Knob(control, control.parse(value))
    return found
