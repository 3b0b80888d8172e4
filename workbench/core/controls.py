"""The controls of a running training, declared once for the panel, the magics, ``Run`` and the command line.

A ``Control`` declares its name, the values it takes, what applies it on the ranks, and how a form shows it. ``parse``
converts what a user typed to a value, or raises a ``ConfigError`` that says what is allowed. The code that applies a
control is registered under its name in ``workbench.engine.loop.settings`` or ``workbench.engine.loop.acts``.

This module must not import torch: the kernel and the command line use it as well as the ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workbench.core.rules.own_alerts import check_alert
from workbench.core.watches import parse_watch
from workbench.errors import ConfigError, suggest

#: what applies a control: the training loop, the strategy, the monitor, the cell, or the session
APPLIERS = ("trainer", "strategy", "observer", "cell", "session")
WIDGETS = ("button", "number", "choice", "text")
#: states of a run that accepts commands
LIVE = ("starting", "running", "paused", "restarting")
#: value of ``lr`` that returns the learning rate to its schedule
SCHEDULE = "schedule"
AUTOMATIC = "auto"
NEWEST, BEST = "newest", "best"


@dataclass(frozen=True, slots=True, kw_only=True)
class Button:
    """A button in the head of the panel.

    Controls with the same ``place`` share one button, which triggers the control that the run's state allows.
    ``asked``: the text from a click until the ranks have done or refused it. ``question``: asked before the control is
    triggered, with one button for each of ``answers`` (text, value).
    """

    text: str
    title: str
    place: str
    asked: str = ""
    question: str = ""
    answers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A setting or an act of a running training.

    ``title``: what people call it (default: its name). ``setting``: whether it is a setting, whose value stays (``set
    name=value``), or an act. ``kind``: a key of ``KINDS``. ``applies``: one of ``APPLIERS``. ``low`` and ``high``:
    inclusive bounds. ``default``: the value used when none is given; with None a value is required, unless ``kind`` is
    "none". ``option``: the option of the spec that gives a setting its initial value; checkpoints store such settings.
    ``alters``: the name of the value in force that an act changes ("": none). ``when_empty``, ``when_zero``: how a form
    shows an empty value in force, and 0. ``states``: the states of a run that allow the control. ``ends``: whether it
    ends the run. ``button``: its button in the head of the panel; a control without one has a place in the form.
    """

    name: str
    kind: str
    help: str
    title: str = ""
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
    when_zero: str = ""
    states: tuple[str, ...] = LIVE
    ends: bool = False
    button: Button | None = None

    @property
    def widget(self) -> str:
        """The form element that takes the value: one of ``WIDGETS``."""
        return KINDS[self.kind].widget

    @property
    def hint(self) -> str:
        """An example of a value, shown in an empty field."""
        return KINDS[self.kind].hint

    @property
    def has_blanks(self) -> bool:
        """Whether a value may be several words, which need no quotes."""
        return KINDS[self.kind].has_blanks

    @property
    def starts_run(self) -> bool:
        """Whether it ends the run and continues it as a new run."""
        return self.kind == "changes"

    @property
    def value_name(self) -> str:
        """The name of the current value that the control sets or alters; "" when there is none."""
        return self.name if self.setting else self.alters

    def parse(self, value: Any = None) -> Any:
        """Convert ``value``, as typed or as given in Python, to the value to apply.

        Raises ``ConfigError``, which says what is allowed, for a value that the control does not take.
        """
        if value is None or value == "":
            if self.kind == "none":
                return None
            if self.default is not None:
                value = self.default
            elif value is None or not (self.setting and self.when_empty):
                raise self._refusal(value)
        return KINDS[self.kind].parse(self, value)

    def allowed(self) -> str:
        """The allowed values in words, such as "a number of at least 0"."""
        if self.kind in ("float", "int"):
            what = "a number" if self.kind == "float" else "a whole number"
            low, high = _number(self.low), _number(self.high)
            if self.low is not None and self.high is not None:
                return f"{what} from {low} to {high}"
            return what + (f" of at least {low}" if low else f" of at most {high}" if high else "")
        return " or ".join(self.choices) if self.kind == "choice" else KINDS[self.kind].allowed

    def describe(self) -> dict[str, Any]:
        """The declaration as JSON values, as the event ``declared`` stores it; ``from_description`` reads it."""
        return asdict(self)

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Control:
        """Restore a control from what ``describe`` returned. Fields that this version does not know are ignored.

        Raises ``ValueError`` when ``described`` does not describe a control.
        """
        known = {name: described[name] for name in cls.__dataclass_fields__ if name in described}
        known |= {name: tuple(known[name]) for name in ("choices", "states") if name in known}
        try:
            if known.get("button") is not None:
                button = dict(known["button"])
                known["button"] = Button(**button | {"answers": tuple(map(tuple, button.get("answers", ())))})
            control = cls(**known)
        except TypeError as error:
            raise ValueError(f"cannot restore a control from this description: {error}") from error
        if control.kind not in KINDS:
            raise ValueError(f"control {control.name!r} has the unknown kind {control.kind!r}")
        return control

    def _refusal(self, value: Any) -> ConfigError:
        """The error for a value that the control does not take."""
        given = "but no value was given" if value is None or value == "" else f"not {value!r}"
        unit = f" ({self.unit})" if self.unit else ""
        return ConfigError(f"{self.name}{unit} takes {self.allowed()}, {given}", field=self.name)


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
        raise ConfigError(
            f"{control.name}: {value!r} is not a valid regular expression: {error}", field=control.name
        ) from None
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


def _watch(control: Control, value: Any) -> str:
    return parse_watch(value, control.name)


def _checkpoint(control: Control, value: Any) -> int | str:
    return value if value in (NEWEST, BEST) else _int(control, value)


def _alert(control: Control, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return check_alert(*(value.get(key, default) for key, default in _ALERT.items()))
    name, colon, when = str(value).partition(":")
    if not colon:
        raise control._refusal(value)
    return check_alert(name.strip(), when.strip())


_ALERT = {"name": "", "when": "", "text": "", "after": 1}


def _changes(control: Control, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise control._refusal(value)
    return dict(value)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: how it is parsed, the allowed values in words, and the form element that takes it.

    ``parse`` takes the control and the given value. ``widget`` is one of ``WIDGETS``. ``hint``: an example of a value.
    ``has_blanks``: a value may be several words, which need no quotes.
    """

    parse: Callable[[Control, Any], Any]
    allowed: str
    widget: str
    hint: str = ""
    has_blanks: bool = False


KINDS: dict[str, Kind] = {
    "none": Kind(_none, "no value", "button"),
    "float": Kind(_float, "a number", "number"),
    "int": Kind(_int, "a whole number", "number"),
    "choice": Kind(_choice, "one of its choices", "choice"),
    "regex": Kind(_regex, "a regular expression to search for in layer names", "text", "part of a name"),
    "lr": Kind(_lr, "a number above 0, a factor such as x0.5, or schedule", "text", "1e-4, or x0.5"),
    "interval": Kind(_interval, "a whole number of steps (0: never), or auto", "text", "steps, or auto"),
    "watch": Kind(_watch, "names such as activations,attention, or off", "text", "activations, or off"),
    "checkpoint": Kind(_checkpoint, "the step of a checkpoint, newest, or best", "text"),
    "alert": Kind(_alert, "NAME: CONDITION, such as high: loss > 10", "text", "high: loss > 10", has_blanks=True),
    "changes": Kind(_changes, "options of a run, such as lr=1e-4", "text", "lr=1e-4 name=b"),
}

CONTROLS: tuple[Control, ...] = (
    Control(name="pause", title="pause", kind="none", states=("starting", "running", "restarting"),
            help="pause all ranks after this step",
            button=Button(text="Pause", title="Pause training", place="pause", asked="Pausing…")),
    Control(name="resume", title="resume", kind="none", states=("paused",), help="continue after a pause",
            button=Button(text="Resume", title="Resume training", place="pause", asked="Resuming…")),
    Control(name="step", title="train and pause", kind="int", low=1, default=1, unit="steps",
            help="train so many steps, then pause"),
    Control(name="checkpoint", title="checkpoint", kind="none", help="write a checkpoint now",
            button=Button(text="Checkpoint", title="Write a checkpoint now", place="checkpoint", asked="Saving…")),
    Control(name="stop", title="stop", kind="choice", choices=("step", "checkpoint", "no-checkpoint"), default="step",
            ends=True,
            help="end the run after this step, with its final checkpoint; checkpoint or no-checkpoint overrides that",
            button=Button(text="Stop", title="Stop training", place="stop", asked="Stopping…",
                          question="End the run?",
                          answers=(("With checkpoint", "checkpoint"), ("Without", "no-checkpoint")))),
    Control(name="lr", title="learning rate", kind="lr", setting=True, applies="strategy", low=0,
            help="a number, a factor (x0.5), or schedule to return to the schedule"),
    Control(name="clip", title="gradient clipping", kind="float", setting=True, applies="strategy", low=0,
            option="clip", when_zero="off", help="largest global L2 norm of the gradient (0: off)"),
    Control(name="weight_decay", title="weight decay", kind="float", setting=True, applies="strategy", low=0,
            help="of the parameter groups that have weight decay"),
    Control(name="accumulate", title="gradient accumulation steps", kind="int", setting=True, low=1,
            option="accumulate", help="parts into which a rank splits its share of the batch"),
    Control(name="log_every", title="logging interval", kind="int", setting=True, low=1, unit="steps",
            help="steps between two rows of loss, throughput and gradient norm"),
    Control(name="grad_every", title="gradient statistics", kind="interval", setting=True, applies="observer", low=0,
            unit="steps", help="steps between gradient statistics (0: never, auto: within the monitoring budget)"),
    Control(name="grad_layers", title="layers watched", kind="regex", setting=True, applies="observer",
            when_empty="all", help="record gradients only of layers whose names match (empty: all)"),
    Control(name="watch", title="watched inside the model", kind="watch", setting=True, applies="observer",
            when_empty="nothing", help="activations, attention, routers, weights, micro_batches (with commas), or off"),
    Control(name="watch_every", title="inside the model", kind="interval", setting=True, applies="observer", low=1,
            unit="steps", help="steps between measurements inside the model (auto: within the monitoring budget)"),
    Control(name="watch_layers", title="modules watched inside", kind="regex", setting=True, applies="observer",
            when_empty="all", help="only of modules whose names match (empty: all)"),
    Control(name="evaluate", title="evaluate", kind="none", help="evaluate after this step"),
    Control(name="sample", title="sample", kind="none", help="generate a sample from the model after this step"),
    Control(name="rollback", title="roll back", kind="checkpoint", low=0, default=NEWEST, unit="step",
            help="restore a checkpoint: weights, optimizer, schedule, random generators, data position, settings"),
    Control(name="branch", title="branch", kind="changes", applies="session", ends=True,
            help="stop this run with a checkpoint and continue from it as a new run with changed options"),
    Control(name="alert", title="alert", kind="alert",
            help="alert whenever a condition begins to hold, such as spike: grad_norm > 5 * median(grad_norm, 50)"),
    Control(name="freeze", title="freeze layers", kind="regex", applies="strategy", alters="frozen", when_empty="none",
            help="stop updating the layers whose names match"),
    Control(name="unfreeze", title="unfreeze layers", kind="regex", applies="strategy", default=".", alters="frozen",
            when_empty="none", help="resume updating frozen layers whose names match (.: all)"),
)  # fmt: skip


def acts() -> list[Control]:
    """The declared controls that are acts, such as ``pause``."""
    return [control for control in CONTROLS if not control.setting]


def settings() -> list[Control]:
    """The declared controls that are settings (``set name=value``)."""
    return [control for control in CONTROLS if control.setting]


def find(name: str, declared: Iterable[Control] = ()) -> Control:
    """Return the control called ``name``, from ``CONTROLS`` or from the knobs ``declared`` by a run.

    Raises ``ConfigError``, which suggests the nearest name, for an unknown name.
    """
    known = {control.name: control for control in (*CONTROLS, *declared)}
    if name not in known:
        title = name.replace("_", " ").lower()
        meant = next((control.name for control in known.values() if control.title == title), "")
        hint = f"did you mean {meant!r}?" if meant else suggest(name, known)
        raise ConfigError(f"unknown control {name!r}: {hint}", field=name)
    return known[name]


def checked_settings(changes: Mapping[str, Any], declared: Iterable[Control] = ()) -> dict[str, Any]:
    """Parse the values of settings, as in ``set lr=1e-4 clip=1``: name -> value to apply.

    Raises ``ConfigError`` when ``changes`` is empty, and for an act, an unknown name or a value that is not allowed.
    """
    if not changes:
        names = ", ".join(control.name for control in (*settings(), *declared))
        raise ConfigError(f"no setting was given: pass name=value, where name is one of {names}")
    found = {}
    for name, value in changes.items():
        if name == "plan":
            raise ConfigError(
                "plan cannot be set together with others, as the run then continues as a new run: use set plan=... "
                "alone, or run.switch(plan)",
                field=name,
            )
        control = find(name, declared)
        if not control.setting:
            raise ConfigError(
                f"{name} is an act, not a setting: call it as {name} instead of set {name}=...", field=name
            )
        found[name] = control.parse(value)
    return found


def assignments(words: Iterable[str]) -> dict[str, str]:
    """Split arguments such as ``["lr=1e-4", "clip=1"]`` into names and values, as texts.

    Raises ``ConfigError`` for an argument without ``=`` and for a name that is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"{word!r} does not have the form name=value: write, for example, lr=1e-4")
        if name in found:
            raise ConfigError(f"{name} is given twice: {found[name]} and {value}; pass it once", field=name)
        found[name] = value
    return found
