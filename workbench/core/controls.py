"""What can be changed while a run trains, declared once. The panel, the magics, ``Run`` and the command line follow.

A ``Control`` says its name, what values it takes, who carries it out, and how it is shown. ``parse`` turns what a
person typed into a value, or raises a ``ConfigError`` that says what is allowed. What a control does on the ranks
stands under its name in ``workbench.engine.loop.settings`` or ``workbench.engine.loop.acts``.

No torch here: the kernel and the command line read this as well as the ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import ConfigError, nearest

#: who carries a control out: the training loop, the strategy, what watches the steps, the cell, or the session
APPLIERS = ("trainer", "strategy", "observer", "cell", "session")
WIDGETS = ("button", "number", "choice", "text")
#: states of a run that can be steered
LIVE = ("starting", "running", "paused")
#: ``set lr=schedule``: back to what the schedule says
SCHEDULE = "schedule"
AUTOMATIC = "auto"
NEWEST = "newest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Button:
    """A button in the head of the panel. Controls with the same ``place`` share one: it does what the state allows.

    ``asked``: its text once it was pressed, until the ranks refuse. ``over``: its text when the run has ended.
    """

    text: str
    title: str
    place: str
    asked: str = ""
    over: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One thing that can be changed. ``setting``: it has a value that stays (``set name=value``); otherwise an act.

    ``kind``: one of ``KINDS``. ``low`` and ``high`` are inclusive. ``default``: the value where none is given; None:
    one has to be given, unless ``kind`` is none. ``option``: the option of the spec that a setting begins with;
    checkpoints keep such settings. ``alters``: the value in force that an act alters ("": none). ``when_empty``: what
    an empty value in force means. ``states``: the states of a run in which it can be done. ``ends``: the run ends when
    it is done. ``button``: in the head of the panel, beside its place in the form.
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
    option: str = ""
    alters: str = ""
    when_empty: str = ""
    states: tuple[str, ...] = LIVE
    ends: bool = False
    button: Button | None = None

    @property
    def widget(self) -> str:
        """What a form asks for the value with: one of ``WIDGETS``."""
        return KINDS[self.kind].widget

    @property
    def hint(self) -> str:
        """An example of what may be typed, for an empty field."""
        return KINDS[self.kind].hint

    @property
    def starts_run(self) -> bool:
        """Whether it ends the run and goes on as a new one."""
        return self.kind == "changes"

    @property
    def in_force(self) -> str:
        """The name of the value in force that it sets or alters; "" when there is none."""
        return self.name if self.setting else self.alters

    def parse(self, value: Any = None) -> Any:
        """The value to apply. ``ConfigError`` says what is allowed."""
        if value is None or value == "":
            if self.kind == "none":
                return None
            if self.default is not None:
                value = self.default
            elif value is None or not (self.setting and self.when_empty):
                raise self._refusal(value)
        return KINDS[self.kind].parse(self, value)

    def allowed(self) -> str:
        """What may be given, for people: "a number of at least 0"."""
        if self.kind in ("float", "int"):
            what = "a number" if self.kind == "float" else "a whole number"
            low, high = _number(self.low), _number(self.high)
            if self.low is not None and self.high is not None:
                return f"{what} from {low} to {high}"
            return what + (f" of at least {low}" if low else f" of at most {high}" if high else "")
        return " or ".join(self.choices) if self.kind == "choice" else KINDS[self.kind].allowed

    def describe(self) -> dict[str, Any]:
        """The declaration as plain values, for an event; ``from_description`` reads it."""
        return asdict(self)

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Control:
        """Undo ``describe``; fields of a newer version are left out. ``ValueError`` for what describes no control."""
        known = {name: described[name] for name in cls.__dataclass_fields__ if name in described}
        known |= {name: tuple(known[name]) for name in ("choices", "states") if name in known}
        try:
            if known.get("button") is not None:
                known["button"] = Button(**known["button"])
            control = cls(**known)
        except TypeError as error:
            raise ValueError(f"no description of a control: {error}") from error
        if control.kind not in KINDS:
            raise ValueError(f"control {control.name!r} is of an unknown kind: {control.kind!r}")
        return control

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


@dataclass(frozen=True, slots=True)
class Kind:
    """What values controls of this kind take: how they are read, what is allowed, and how a form asks for one."""

    parse: Callable[[Control, Any], Any]
    allowed: str
    widget: str
    hint: str = ""


KINDS: dict[str, Kind] = {
    "none": Kind(_none, "no value", "button"),
    "float": Kind(_float, "a number", "number"),
    "int": Kind(_int, "a whole number", "number"),
    "choice": Kind(_choice, "one of its choices", "choice"),
    "regex": Kind(_regex, "a regular expression that layer names are searched for", "text", "part of a name"),
    "lr": Kind(_lr, "a number above 0, a factor such as x0.5, or schedule", "text", "1e-4, or x0.5"),
    "interval": Kind(_interval, "a whole number of steps (0: never), or auto", "text", "steps, or auto"),
    "checkpoint": Kind(_checkpoint, "the step of a checkpoint, or newest", "text"),
    "changes": Kind(_changes, "options of a run, such as lr=1e-4", "text", "lr=1e-4 name=b"),
}

CONTROLS: tuple[Control, ...] = (
    Control(name="pause", kind="none", states=("starting", "running"), help="pause all ranks after this step",
            button=Button(text="Pause", title="Pause training", place="pause")),
    Control(name="resume", kind="none", states=("paused",), help="continue after a pause",
            button=Button(text="Resume", title="Resume training", place="pause")),
    Control(name="step", kind="int", low=1, default=1, unit="steps", help="train some steps, then pause",
            button=Button(text="Step", title="Take one step, then pause", place="step")),
    Control(name="checkpoint", kind="none", help="write a checkpoint now",
            button=Button(text="Checkpoint", title="Write a checkpoint now", place="checkpoint")),
    Control(name="stop", kind="choice", choices=("step", "checkpoint"), default="step", ends=True,
            help="end the run after this step, or after writing a checkpoint",
            button=Button(text="Stop", title="Stop training", place="stop", asked="Stopping…", over="Ended")),
    Control(name="lr", kind="lr", setting=True, applies="strategy", low=0,
            help="learning rate: a number, a factor (x0.5), or schedule"),
    Control(name="clip", kind="float", setting=True, applies="strategy", low=0, option="clip",
            help="largest global norm of the gradient (0: no clipping)"),
    Control(name="weight_decay", kind="float", setting=True, applies="strategy", low=0,
            help="weight decay of the parameter groups that have one"),
    Control(name="accumulate", kind="int", setting=True, low=1, option="accumulate",
            help="gradient accumulation steps: the parts that a rank splits its share of the batch into"),
    Control(name="log_every", kind="int", setting=True, low=1, unit="steps", help="steps between step records"),
    Control(name="grad_every", kind="interval", setting=True, applies="observer", low=0, unit="steps",
            help="steps between gradient statistics (0: never)"),
    Control(name="grad_layers", kind="regex", setting=True, applies="observer", when_empty="all",
            help="record gradients only of layers whose names match (empty: all)"),
    Control(name="evaluate", kind="none", help="evaluate now"),
    Control(name="sample", kind="none", help="let the model write a sample now"),
    Control(name="rollback", kind="checkpoint", low=0, default=NEWEST, unit="step",
            help="return to a checkpoint: weights, optimizer, schedule, random generators, data, settings"),
    Control(name="branch", kind="changes", applies="session", ends=True,
            help="stop this run with a checkpoint and continue from it as a new run with changed options"),
    Control(name="freeze", kind="regex", applies="strategy", alters="frozen", when_empty="none is frozen",
            help="stop updating the layers whose names match"),
    Control(name="unfreeze", kind="regex", applies="strategy", default=".", alters="frozen",
            when_empty="none is frozen", help="update frozen layers whose names match again"),
)  # fmt: skip


def acts() -> list[Control]:
    """Controls that have a verb of their own."""
    return [control for control in CONTROLS if not control.setting]


def settings() -> list[Control]:
    """Controls that are set: ``set name=value``."""
    return [control for control in CONTROLS if control.setting]


def find(name: str, declared: Iterable[Control] = ()) -> Control:
    """The control of that name, of ours or among those that a run declared. ``ConfigError`` with the nearest name."""
    known = {control.name: control for control in (*CONTROLS, *declared)}
    if name not in known:
        raise ConfigError(f"unknown control {name!r}: {nearest(name, known)}", field=name)
    return known[name]


def checked_settings(changes: Mapping[str, Any], declared: Iterable[Control] = ()) -> dict[str, Any]:
    """Checked values of ``set lr=1e-4 clip=1``; ``ConfigError`` for an act, an unknown name or a wrong value."""
    if not changes:
        names = ", ".join(control.name for control in (*settings(), *declared))
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
